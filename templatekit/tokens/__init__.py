"""Text → ids and loss weights: the tokenizer, the encoder, what is trained, and truncation.

The path of a text:

1. `tokenizer` lists the *control tokens* of a tokenizer, such as `<|im_end|>`; `load` finds the tokenizer.
2. `supervision` decides which characters are trained, and gives the text *loss spans*.
3. `encoder` cuts the text where the loss weight changes and where a server would start to generate, and splits it at
   control tokens. The results are *fragments* (`fragments`): a control token's id, or text for the backend.
4. Where the tokenizer encodes words separately (`word_boundaries` proves it), `assembly` concatenates cached ids:
   `word_table` caches the ids of each word, and `token_layouts` those of all text that a traced template always writes.
   Otherwise `encoder` passes whole fragments to the backend.
5. The backend is `tokenizers` or, where it is proven to give the same ids, kitoken (`fast_backend`).
6. `truncation` shortens samples that are too long. `long_texts` finds out, without encoding all of a text, that it is
   too long; `token_bounds` proves for which tokenizers.

`disk_cache` stores values that take long to compute for a tokenizer.

Where things are decided:

- `-100`, the label of a token without loss: the value is `types.IGNORE_INDEX`; `packing.columns.labels_of` and
  `TokenizedExample.labels` turn loss weights into labels.
- Loss weights: `supervision.loss_spans` for characters; `encoder` for tokens, of which the first has none.
- Control tokens in the data: `encoder`. It trusts only those that the template wrote (`Encoder._trusted_matches`), so a
  `<|im_end|>` in a user's text is encoded as ordinary text.
- BOS and EOS: the template writes them, and they become ids like other control tokens. No backend adds them, since all
  are called with `add_special_tokens=False`. `Tokenizer.special_tokens` says which tokens they are, and whether the
  tokenizer puts BOS before plain text (`adds_bos`); instruction formats then do the same.
- Truncation: `truncation.LengthLimit`.
"""
