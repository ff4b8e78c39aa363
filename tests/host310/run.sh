#!/bin/sh
# Runs the tests marked `host` with the oldest packages that hosts pin (requirements/host.txt), twice:
#  - with the Python that runs this project, and its torch: everything;
#  - with Python 3.10, which hosts run, where there is one. A CPU build of torch cannot be counted on there and
#    the CUDA build is gigabytes, so what imports torch is skipped, unless HOST_TORCH names what to install,
#    for instance: make test-host HOST_TORCH=torch==2.1.2
# Usage: tests/host310/run.sh PYTHON_OF_THE_PROJECT
set -eu
cd "$(dirname "$0")/../.."
project_python=$1

environment() { # folder, python, further requirement
    stamp="$1/.stamp"
    if [ ! -e "$stamp" ] || [ requirements/host.txt -nt "$stamp" ] || [ "$(cat "$stamp")" != "$3" ]; then
        echo "making $1 (once)"
        "$2" -m venv --clear "$1"
        "$1/bin/python" -m pip install -qq --disable-pip-version-check --no-input -r requirements/host.txt ${3:+"$3"}
        printf '%s' "$3" >"$stamp"
    fi
}

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

check() { # folder, what to say
    echo "== host code: $2"
    COPIER_HOST_FLOOR=1 OMP_NUM_THREADS=1 "$1/bin/python" -m pytest -q -n "${JOBS:-2}" --dist loadfile -m host -p no:cacheprovider tests
}

# Of the project's packages only torch and what it needs: hosts lack the rest, or have other versions.
torch_of_the_project() {
    rm -rf .venv-floor/torch-only
    mkdir .venv-floor/torch-only
    for name in torch torchgen functorch filelock fsspec jinja2 markupsafe mpmath networkx sympy typing_extensions.py; do
        if [ -e "$1/$name" ]; then ln -s "$1/$name" .venv-floor/torch-only/; fi
    done
    printf '%s\n' "$PWD/.venv-floor/torch-only" >"$(site .venv-floor/bin/python)/torch-only.pth"
}

# Pillow 9.5 is built for Python up to 3.11.
if "$project_python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
    environment .venv-floor "$project_python" ""
    torch_of_the_project "$(site "$project_python")"
    check .venv-floor "this project's Python and torch, the hosts' oldest numpy and pillow"
else
    echo "== host code with this project's Python: skipped, the hosts' oldest packages have no build for it"
fi

for candidate in python3.10 "$HOME"/.pyenv/versions/3.10*/bin/python; do
    # A shim named python3.10 may stand for nothing: ask it.
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
        environment .venv-host310 "$candidate" "${HOST_TORCH:-}"
        check .venv-host310 "Python 3.10, ${HOST_TORCH:-without torch}"
        exit
    fi
done
echo "== host code under Python 3.10: skipped, no Python 3.10 here (python3.10 on the path, or under ~/.pyenv)"
