"""`Address`: an address of data whose passwords and tokens are never shown."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

HIDDEN = "***"
"""What is shown in place of a password or a token."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHAIN = re.compile(rf"::(?={_URL.pattern})")
"""Between the addresses of a chain: `zip://rows.jsonl::https://host/rows.zip`."""
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
        return HIDDEN in _hide(self.whole).secrets


def is_url(address: str) -> bool:
    """Whether the address starts with a protocol, like `s3://`."""
    return _URL.match(address) is not None


def shown(address: str) -> str:
    """The address with each password and token replaced: `https://me:***@host/x?sig=***`."""
    return _hide(address).shown


def masked(text: str, address: Address) -> str:
    """A text, such as a client's error, in which the address and its secrets are replaced by what is shown of them."""
    if address.whole == address:
        return text
    text = text.replace(address.whole, address)
    secrets = {form for secret in _hide(address.whole).secrets for form in (secret, unquote(secret)) if len(form) > 2}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


class _Parts(NamedTuple):
    """An address in two parts."""

    shown: str
    secrets: list[str]
    """Its passwords and tokens, in order."""


def _hide(address: str) -> _Parts:
    """Separate what may be shown of an address from its secrets. Each address of a chain may have some."""
    secrets: list[str] = []

    def hide_parameter(found: re.Match[str]) -> str:
        if not _SECRET_NAME.search(found["name"]):
            return found.group()
        secrets.append(found["secret"])
        return found["before"] + HIDDEN

    texts = []
    for text in _CHAIN.split(address):
        if is_url(text):
            protocol, _, rest = text.partition("://")
            server = re.split(r"[/?#]", rest, maxsplit=1)[0]
            login, at, host = server.rpartition("@")
            user, colon, password = login.partition(":")
            if colon:
                secrets.append(password)
                login = f"{user}:{HIDDEN}"
            elif user and protocol.lower() in _TOKEN_BEFORE_HOST:
                secrets.append(user)
                login = HIDDEN
            text = f"{protocol}://{login}{at}{host}" + _PARAMETER.sub(hide_parameter, rest[len(server) :])
        texts.append(text)
    return _Parts("::".join(texts), secrets)
