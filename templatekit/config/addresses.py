"""`Address`: an address of data whose passwords and tokens are never shown."""

from __future__ import annotations

import re

HIDDEN = "***"
"""What is shown in place of a password or a token."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOGIN = re.compile(r"(?P<before>://[^/?#@:]*:)(?P<secret>[^/?#]*)(?=@)|(?P<key>://)(?P<token>[^/?#:]*)(?=@)")
_PARAMETER = re.compile(r"(?P<before>[?&;#](?P<name>[^=&;#]*)=)(?P<secret>[^&;#]*)")
_SECRET_NAME = re.compile(
    r"^(sig|s|st|key|pwd|auth|code|jwt)$|signature|token|secret|passw|credential|api.?key|access.?key|session.?key",
    re.IGNORECASE,
)
"""Names of the parameters that are secret: those of signed addresses (S3, GCS, Azure), and what services call a key."""
_TOKEN_BEFORE_HOST = frozenset({"http", "https"})
"""Protocols in which a single name before `@` may be a token; elsewhere it is a user or a container."""


class Address(str):
    """An address as it may be shown; `whole` is the address to open.

    It is the text that is shown, so that no message, progress line, cache or recipe can hold a secret. To run a recipe
    with such an address again, give the address again.
    """

    __slots__ = ("whole",)
    whole: str

    def __new__(cls, text: str, whole: str | None = None) -> Address:
        """The address `text`, or that of `whole` if `text` is what is shown of it."""
        if isinstance(text, Address):
            return text
        address = super().__new__(cls, shown(text) if whole is None else text)
        address.whole = text if whole is None else whole
        return address

    def __reduce__(self) -> tuple[type[Address], tuple[str, str]]:
        return Address, (str(self), self.whole)

    def __str__(self) -> str:
        return "".join(self)

    def lacks_secret(self) -> bool:
        """Whether it was copied from where it is shown, so that `***` stands where a secret should."""
        longer = self.whole.replace(HIDDEN, f"{HIDDEN}x")
        return longer != self.whole and shown(longer) != longer


def is_url(address: str) -> bool:
    """Whether the address starts with a protocol, like `s3://`."""
    return _URL.match(address) is not None


def shown(address: str) -> str:
    """The address with each password and token replaced: `https://me:***@host/x?sig=***`."""
    match = _URL.match(address)
    if match is None:
        return address
    protocol = match.group()[:-3].lower()

    def login(found: re.Match[str]) -> str:
        if found["before"] is not None:
            return found["before"] + HIDDEN
        secret = protocol in _TOKEN_BEFORE_HOST and found["token"]
        return found["key"] + HIDDEN if secret else found.group()

    def parameter(found: re.Match[str]) -> str:
        return found["before"] + HIDDEN if _SECRET_NAME.search(found["name"]) else found.group()

    end = re.search(r"[/?#]", address[match.end() :])
    split = match.end() + (end.start() if end else len(address) - match.end())
    return _LOGIN.sub(login, address[:split], count=1) + _PARAMETER.sub(parameter, address[split:])


def masked(text: str, address: Address) -> str:
    """A text, such as a client's error, in which the address and its secrets are replaced by what is shown of them."""
    if address.whole == address:
        return text
    text = text.replace(address.whole, address)
    for secret in _secrets(address.whole):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(address: str) -> list[str]:
    """The passwords and tokens in an address, also as they are without percent encoding, the longest first."""
    from urllib.parse import unquote

    found: list[str] = []
    pattern = re.escape(shown(address)).replace(re.escape(HIDDEN), "(.*)")
    match = re.fullmatch(pattern, address, re.DOTALL)
    for secret in match.groups() if match else ():
        found += [secret, unquote(secret)]
    return sorted({secret for secret in found if len(secret) > 2}, key=len, reverse=True)
