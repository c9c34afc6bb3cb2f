"""Who has verified a node: statements (`kycs`), each about one node, and signed by its verifier.

A name alone counts for nothing, as anybody can write one: a job names the verifier's key beside it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.errors import NunetError
from nunet_cli.records.fields import Did, Name, Time, TimeOrNone
from nunet_cli.records.limits import Limits

# the role in which a verifier signs, so that no other signature of its key counts as one
VERIFIER = "kyc-verifier"
MOST_KYCS = 16
MAX_STATEMENT = 1000
# the clock of the verifier may be a little early
MAX_SKEW = timedelta(seconds=60)


class KycStatement(Struct, forbid_unknown_fields=True, frozen=True):
    """What a verifier signs: that it has verified `subject`, under the name that it goes by; empty for no end."""

    v: Literal[1]
    subject: Did
    name: Name
    issued_at: Time
    expires_at: TimeOrNone = ""


class Kyc(Struct, forbid_unknown_fields=True, frozen=True):
    """A verification: a job asks with the `name` and the key of a verifier, a machine has its statement as well.

    `statement` is the exact text that was signed, `signature` is base64.
    """

    name: Name
    verifier: Did
    statement: Annotated[str, Limits(max_length=MAX_STATEMENT)] = ""
    signature: Annotated[str, Limits(max_length=100)] = ""

    @property
    def who(self) -> str:
        """The verifier, as people are shown it."""
        return f"{self.name} ({self.verifier})"

    def fault(self, subject: str, now: str) -> str:
        """Return why this is no statement that holds for a node; empty where it is.

        Args:
            subject: the DID of the node that shows it.
            now: the time at which it must hold, RFC 3339.
        """
        # imported here: who only reads a job has no need of what checks signatures
        from nunet_cli.records.documents import Document, Signature

        document = Document(self.statement, (Signature(self.verifier, VERIFIER, self.signature),))
        if not document.is_signed(self.verifier, VERIFIER):
            return f"the statement of {self.who} is not signed by that key"
        try:
            said = document.read(KycStatement)
        except NunetError:
            return f"the statement of {self.who} cannot be read"
        if said.name != self.name:
            return f"the statement of {self.who} is made as {said.name}"
        if said.subject != subject:
            return f"the statement of {self.who} is about another node, {said.subject}"
        if said.expires_at and said.expires_at <= now:
            return f"the statement of {self.who} expired on {said.expires_at[:10]}"
        if said.issued_at > quantities.format_time(quantities.parse_time(now) + MAX_SKEW):
            return f"the statement of {self.who} counts from {said.issued_at} on"
        return ""


def expires_at(kyc: Kyc) -> str:
    """Return when a statement ends; empty for never, and where it cannot be read."""
    from nunet_cli.records.documents import Document

    try:
        return Document(kyc.statement).read(KycStatement).expires_at
    except NunetError:
        return ""
