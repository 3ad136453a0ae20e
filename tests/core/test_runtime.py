"""The shell around a stage: exit codes, one line for the user, tracebacks for us, orderly ends."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError

ROOT = Path(__file__).parents[2]
CAPTURED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run(body, *arguments, **options):
    """A script whose main has the given body, run as a stage."""
    code = (
        "import sys, time\nfrom pipeline_lib import terminal\nfrom pipeline_lib.core.errors import UserError\n"
        f"def main(params_file):\n    {body}\n"
        "sys.argv[0] = 'stage'\nterminal.run_stage(main, 'What it does.')\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, timeout=60, **{**CAPTURED, **options})


def test_success_is_exit_0_and_help_tells():
    assert run("print(params_file)").stdout == "params.yaml\n"
    assert run("pass", "--params", "x.yaml").returncode == 0
    shown = run("pass", "--help").stdout
    assert "What it does." in shown
    assert "--params" in shown


def test_user_errors_are_one_line_and_exit_1():
    done = run("raise UserError('params.yaml: refine.x: wrong; mend it')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: params.yaml: refine.x: wrong; mend it\n")
    debug = run("raise UserError('wrong')", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_missing_file_is_a_user_error_too():
    done = run("open('/nowhere/file')")
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 2] No such file or directory: '/nowhere/file'\n"


def test_a_full_disk_is_one_line_however_a_library_wraps_it():
    """torch calls it an enforce failure, with the OSError in its context; safetensors an error of its own."""
    by_torch = (
        "import io, torch\n"
        "    class Full(io.BytesIO):\n"
        "        def write(self, data):\n"
        "            if len(data) > 1000: raise OSError(28, 'No space left on device')\n"
        "            return super().write(data)\n"
        "    torch.save({'a': torch.zeros(2_000_000)}, Full())"
    )
    for body in (
        by_torch,
        "raise ValueError('No space left on device (os error 28)')",
        "raise OSError(28, 'No space left on device')",
    ):
        done = run(body)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert re.match("error: .*No space left on device.*; make room and run again$", done.stderr)


def test_other_exceptions_keep_their_traceback_and_fail():
    """A failed run never exits 0: DVC would record it as a success."""
    done = run("1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("body", ["print('line')", "print('line\\n' * 10**6)"])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(body):
    """Whether little was printed, which waits for the flush at the end, or more than a pipe holds."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(body, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_still_an_error():
    """A server that hangs up, while standard output is well."""
    done = run("raise BrokenPipeError(32, 'Broken pipe', 'server')")
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe: 'server'\n")


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", "± ×"), ("ascii", "+- x"), ("utf-8", "± ×")])
def test_a_terminal_without_a_sign_shows_a_plain_one(encoding, shown):
    """A minus stays a minus: `?` would leave open whether something rose or fell."""
    text = "a → b −2\u00a0% ± × \u03b1"
    body = f"print({text!r}); raise UserError({text!r})"
    done = run(body, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    expected = text if encoding == "utf-8" else f"a -> b -2{' ' if encoding == 'ascii' else chr(160)}% {shown} \\u03b1"
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{expected}\n", f"error: {expected}\n")


@pytest.mark.parametrize("command", ["stages.refine", "pipeline_lib.calibrate"])
def test_ctrl_c_while_a_command_is_imported_is_one_line(command, tmp_path):
    """A torch that takes its time, and a key pressed meanwhile."""
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    (tmp_path / "torch.py").write_text(slow)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    done = subprocess.run(
        [sys.executable, "-m", command], env=environment, capture_output=True, timeout=60, preexec_fn=listen
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"interrupted\n")


@pytest.mark.parametrize("command", ["stages.shard", "pipeline_lib.lineage"])
def test_a_python_without_the_packages_is_told_the_environment(command):
    """`-S`: the packages of no environment are seen."""
    done = subprocess.run([sys.executable, "-S", "-m", command], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(
        rb"error: no `\w+` in .*python.*; `source .venv/bin/activate` in .* `make install` .*\n", done.stderr
    )


def test_the_garbage_collector_works_in_a_command_and_not_while_it_is_imported_or_ends():
    """Off while imports run; on again in the shell that every command enters; with nothing to look through at last."""
    code = (
        "import atexit, gc, sys\nsys.argv[0], sys.orig_argv = '-m', ['python', '-m', 'stages.base']\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < 100))\n"
        "import pipeline_lib\nfrom pipeline_lib import terminal\n"
        "before = gc.isenabled()\nwith terminal.one_line_errors():\n    print(before, gc.isenabled())\n"
        "made = [[] for _ in range(1000)]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, **CAPTURED)
    assert (done.stdout, done.stderr) == ("False True\nTrue\n", "")
    commands = [*ROOT.glob("stages/[!_]*.py"), *ROOT.glob("pipeline_lib/**/__main__.py")]
    assert len(commands) >= 12
    assert all(re.search(r"run_stage\(main|one_line_errors\(", path.read_text()) for path in commands)


def test_a_program_that_imports_the_library_keeps_its_garbage_collector_and_its_tracebacks(tmp_path):
    """Also one whose package imports it while Python still looks for the module."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").write_text("import pipeline_lib\n")
    (tmp_path / "other/run.py").write_text(
        "import gc, sys\nprint(gc.isenabled(), sys.excepthook is sys.__excepthook__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "other.run"], env=environment, timeout=60, **CAPTURED)
    assert (done.stdout, done.stderr) == ("True True\n", "")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_freed_memory_is_kept_until_it_is_given_back():
    code = (
        "from pipeline_lib.core import runtime\n"
        "def resident():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))\n"
        "runtime.keep_freed_memory()\nbefore = resident()\nblock = bytearray(b'x') * 100_000_000\ndel block\n"
        "kept = resident() - before\nruntime.give_freed_memory_back()\nprint(kept, resident() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True, **CAPTURED)
    kept, left = map(int, done.stdout.split())
    assert kept > 90_000
    assert left < 10_000


def start(body):
    code = (
        "import os, time\nfrom pipeline_lib import terminal\nfrom pipeline_lib.core import runtime\n"
        f"def main(params_file):\n    print('ready', flush=True)\n    {body}\n"
        "terminal.run_stage(main, None)\n"
    )
    return [sys.executable, "-c", code]


WAIT = (
    "\n    for _ in range(600):\n        time.sleep(0.05)\n        if runtime.stop_requested(): raise runtime.Stopped\n"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_an_orderly_end(number):
    process = subprocess.Popen(start(WAIT.strip() + "\n"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert b"stopping at the next step" in errors
    assert len(errors.splitlines()) == 1


def test_a_second_ctrl_c_ends_at_once_in_one_line():
    process = subprocess.Popen(start("time.sleep(60)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert b"stopping at the next step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + signal.SIGINT, b"interrupted\n")


@pytest.mark.parametrize(("stage", "code"), [("refine", 128 + signal.SIGINT), (None, 0)])
def test_ctrl_c_at_the_very_end_keeps_dvc_from_the_next_stage(stage, code):
    """dvc itself ignores Ctrl-C while a stage runs, and takes exit code 0 as a reason to go on."""
    environment = {**os.environ, **({"DVC_STAGE": stage} if stage else {})}
    done = run("import os, signal; os.kill(os.getpid(), signal.SIGINT)", env=environment)
    assert done.returncode == code
    assert ("`dvc commit refine` keeps what it made" in done.stderr) == bool(stage)


def test_loops_without_a_checkpoint_end_at_the_next_item(monkeypatch):
    items = runtime.until_stopped(range(3))
    assert next(items) == 0
    monkeypatch.setattr(runtime, "_stop_signal", signal.SIGINT)
    with pytest.raises(runtime.Stopped) as ended:
        next(items)
    assert ended.value.code == 128 + signal.SIGINT


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_stage_ends_when_its_parent_is_killed(tmp_path):
    """Killing dvc must not leave a stage running: a killed parent's child ends by itself."""
    pid_file = tmp_path / "pid"
    body = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))" + WAIT
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({start(body)!r})"], stdout=subprocess.PIPE, cwd=ROOT
    )
    parent.stdout.readline()
    for _ in range(100):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.05)
    child = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_devices():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match=r"runtime\.device: `cuda:99` is not usable here"):
        runtime.pick_device("cuda:99")
    with pytest.raises(
        UserError, match=r"runtime\.device: `gpu` is no device; write cpu, cuda \(or cuda:1\), mps or auto$"
    ):
        runtime.pick_device("gpu")


def test_importing_the_leaves_imports_nothing_heavy():
    """Start-up: config, runtime, artifacts and tracking load neither torch nor mlflow nor matplotlib."""
    code = (
        "import sys\nfrom pipeline_lib import terminal, tracking\n"
        "from pipeline_lib.core import artifacts, config, runtime, shards\n"
        "from pipeline_lib.params import check\nfrom pipeline_lib.sources import formats\n"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'sklearn', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_tf32_is_on_inside_its_block_only(monkeypatch):
    """The switches that an NVIDIA GPU obeys; without one nothing is switched."""
    import torch

    def switches():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    runtime.prepare(seed=0, num_threads=None, deterministic=False)
    assert switches() == ("highest", False)
    with runtime.arithmetic("tf32", torch.device("cpu")):
        assert switches() == (("high", True) if torch.cuda.is_available() else ("highest", False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with runtime.arithmetic("tf32", torch.device("cpu")):
        assert switches() == ("high", True)
    assert switches() == ("highest", False)
    with runtime.arithmetic("fp32", torch.device("cpu")):
        assert switches() == ("highest", False)
        assert not torch.is_autocast_enabled("cpu")
    with runtime.arithmetic("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # the shell of a batch script: no world around it
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "MASTER_ADDR": "node1"},
            None,
        ),  # also with one
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "node1"}, (5, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "MASTER_ADDR": "node1"}, None),
        # torchrun on each node, started by srun: torchrun's word counts
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "MASTER_ADDR": "n"}, (9, 16, 1)),
    ],
)
def test_who_started_this_process(monkeypatch, environment, expected):
    for name in os.environ:
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert runtime.world_environment() == expected


def test_several_tasks_of_srun_without_a_meeting_place_are_refused(monkeypatch):
    # Otherwise each of them would run the whole stage and write the same files.
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        runtime.world_environment()


def test_usage_names_the_command():
    command = [sys.executable, "-m", "pipeline_lib.report", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert shown.startswith("usage: python -m pipeline_lib.report [-h]")
