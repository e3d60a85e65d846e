"""Addresses hold passwords: what is printed or kept shows none."""

import re
import shlex
from urllib.parse import unquote, unquote_plus

SAFE = {"host", "port", "dbname", "user", "sslmode", "application_name", "charset", "connect_timeout", "timeout"}
_known: dict[str, str] = {}  # what is to be hidden -> what stands for it


def hidden(text: str) -> str:
    """Hide who logs in, and with what, in a text that ends with an address: `--storage=postgresql://...`.

    Everything up to the last @, and in the query all values but those of names known to be harmless.
    """
    found = re.match(r"(.*?[\w+.-]+://)(.*)", text, re.DOTALL)
    if not found:
        return text
    begin, rest = found.groups()
    _, at, place = rest.rpartition("@")
    place, question, query = place.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    shown = [f"{name}={value if name.lower() in SAFE else '***'}" if equals else name for name, equals, value in pairs]
    return f"{begin}{'***@' if at else ''}{place}{question}{'&'.join(shown)}"


def remember(address: str) -> None:
    """Hide this address, and what is secret in it, wherever `without_password` finds it."""
    if hidden(address) == address:
        return
    for form in (address, shlex.quote(address), repr(address)):
        _known[form] = hidden(address)
    _, _, rest = address.partition("://")
    login, _, place = rest.rpartition("@")
    user, colon, password = login.partition(":")
    token = user if not colon and len(user) > 11 else ""  # a name stands in other words
    values = [pair.partition("=") for pair in place.partition("?")[2].split("&")]
    secrets = [password, token, *(value for name, _, value in values if name.lower() not in SAFE)]
    for secret in secrets:
        for form in {secret, unquote(secret), unquote_plus(secret)}:
            if len(form) > 3:  # shorter ones stand in other words
                _known[form] = "***"


def without_password(text: str) -> str:
    """Hide every address that is known, what is secret in them, and what looks like an address with a login."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, _known[secret])
    text = re.sub(r"(?<=://)[^\s'\"`]+@", "***@", text)
    return re.sub(r"(?i)(?<=[?&])(\w*(?:pass|token|secret|pwd)\w*)=[^&\s'\"`]+", r"\1=***", text)
