"""Checkpoints into a folder until its disk is full; run by test_checkpoint.py in a process of its own."""

import sys
from pathlib import Path

from parity_cases import Way, make_batch_for, make_engine
from test_checkpoint import FACTS, state

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.training.checkpoint import CheckpointConfig, Saver

if __name__ == "__main__":
    distributed.start()
    engine = make_engine("contrastive", Way(0))
    saver = Saver(Path(sys.argv[1]), CheckpointConfig(keep=100), FACTS)
    try:
        for step in range(1, 100):
            engine.step(make_batch_for("contrastive", step))
            saver.save(engine, state(step))
    except UserError as error:
        sys.stdout.write(f"{error}\n")
    distributed.stop()
