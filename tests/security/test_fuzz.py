"""What a peer with a key can send, at random, to a provider, a requester and an authority: they live, and still trade.

The long version runs as a script: `python -m tests.security.fuzz_frames --seconds 60 --role provider --seed N`.
"""

import random
from pathlib import Path

from tests.security.fuzz_frames import ROLES, fuzz


def test_every_kind_of_frame_and_message_spoilt_at_random_ends_no_node(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    sent = fuzz(tmp_path, seconds=2, roles=ROLES, seed=seed)
    assert min(sent.values()) > 20, f"seed {seed}: {sent}"
