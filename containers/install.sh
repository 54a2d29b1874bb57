#!/usr/bin/env bash
# Installs this package into an NGC image, or another Python that has torch and megatron-core, and changes nothing there: the
# package itself with --no-deps, then only those of its requirements that are lacking, in versions that go with what is here.
# Ends with another code than 0 when anything of the image changed. The Dockerfiles call it; in a running container it does the
# same. Run again it changes nothing.
#
#   containers/install.sh [PACKAGE]     a wheel or a source tree; without it the tree of this script
#
#   PYTHON=python3      the interpreter to install for
#   UPGRADE=            distributions that may be replaced where they are too old, with spaces between; never torch and what is
#                       built on it
#   VLLM=auto           auto: where there is none, one that was built for the torch that is here, if the index has it
#                       no: none; anything else: this requirement (vllm==0.25.1), or the installation fails
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=${1:-$(dirname "$here")}
python=${PYTHON:-python3}
vllm=${VLLM:-auto}
read -r -a upgrade <<< "${UPGRADE:-}"
notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT
# NGC images pin in a file what they had in mind; what they have is pinned below, and two lists may contradict each other.
unset PIP_CONSTRAINT

pip_install() { "$python" -m pip install --disable-pip-version-check --no-input --root-user-action=ignore "$@"; }
lacking() { "$python" "$here/lacking.py" "$notes/constraints.txt" --upgrade "${upgrade[@]}" > "$notes/lacking.txt"; }
has() { "$python" -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"; }

if ! has pip; then
  echo "nemo-cascade: $python has no pip; python3 -m ensurepip, or uv pip install --python $python pip, then again" >&2
  exit 2
fi
"$python" "$here/pinned.py" record "$notes/before.json"
lacking
if [ -s "$notes/lacking.txt" ]; then
  echo "lacking: $(paste -sd' ' "$notes/lacking.txt")"
  pip_install --constraint "$notes/constraints.txt" --requirement "$notes/lacking.txt"
fi
# Also where the same version is here already: it may be of an older tree.
pip_install --no-deps --force-reinstall "$package"

case $vllm in
  no) ;;
  auto)
    lacking
    torch=$(sed -n 's/^torch==//p' "$notes/constraints.txt")
    if has vllm; then
      echo "vllm: the image's own is kept"
    # vLLM's wheels name the one release of torch that they were built for, so that pip finds the newest that fits or none. NVIDIA's
    # own builds (2.11.0a0+...) are no release: pip would fetch one large wheel after the other to find that out.
    elif [[ ! $torch =~ ^[0-9.]+(\+cu[0-9]+)?$ ]] ||
      ! pip_install --constraint "$notes/constraints.txt" --only-binary vllm 'vllm>=0.12'; then
      echo "vllm: no wheel was built for torch $torch, so none was installed: rollouts are drawn by the embedded engine" \
        "(policy.generation.backend=megatron, the default). For vLLM take an image that has it, or build it against this torch."
    fi
    ;;
  *)
    lacking
    pip_install --constraint "$notes/constraints.txt" "$vllm"
    ;;
esac

"$python" "$here/pinned.py" compare "$notes/before.json" --may-change "${upgrade[@]}"
