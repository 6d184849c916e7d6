import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from lic.trainers.checkpoints import ENTRIES, CheckpointManager, load
from lic.trainers.config import CheckpointConfig

folder = Path(sys.argv[1])
state = {**dict.fromkeys(ENTRIES, {}), "model": {"w": torch.rand(100_000)}}
ours = CheckpointManager(folder, CheckpointConfig(keep_last=2, keep_best=1))
random.seed(1)
step = 0
for _ in range(20):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            ours.write(state, step, {"val_loss": 1 / step})
            os.write(writer, step.to_bytes(4, "big"))
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    told = b""
    while part := os.read(reader, 65536):
        told += part
    os.close(reader)
    done = int.from_bytes(told[-4:], "big") if told else step
    found = ours.latest()
    step = load(found)["step"] if found else 0
    assert step in (done, done + 1), (step, done)
left = [path.name for path in (folder / "checkpoints").iterdir()]
assert len(left) <= 5, left
print(step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts processes anew, too slowly")
def test_a_run_killed_at_any_moment_loses_one_checkpoint_at_most(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
