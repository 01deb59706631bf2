"""Conversations with a model as token ids: each id that is sampled is kept, and trained, as it was sampled.

- `dialogue`: gives prompts, takes answers, and bridges from an answer to the next prompt
- `bridging`: where an answer ends in the next prompt, and the ids of what stands behind it
- `branches`: the ids of a conversation, which of them were sampled, and where a template changed its history
"""

from templatekit.serving.branches import Branch, Divergence, Dropped
from templatekit.serving.dialogue import Bridge, Dialogue

__all__ = ["Branch", "Bridge", "Dialogue", "Divergence", "Dropped"]
