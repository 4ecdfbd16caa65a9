# Shared by the scripts here: system packages, and the project's own virtual environment. Sourced, not run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONDONTWRITEBYTECODE=1

note() { printf '%s\n' "$*" >&2; }

# need COMMAND PACKAGE WHAT: makes sure that COMMAND is there, from the Debian package PACKAGE; else says that WHAT is skipped.
wanted=()
need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    compgen -G "$1" >/dev/null && return 0
    wanted+=("$2")
    missing+="  $1 (package $2): $3"$'\n'
}
missing=""
install_wanted() {
    [ ${#wanted[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        note "installing: ${wanted[*]}"
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
    else
        note "not installed, and this user cannot install it:"
        note "$missing"
    fi
}

find_python() {
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            return 0
        fi
    done
    note "Python 3.11 or newer is needed. On Debian 12 and Ubuntu 24.04: apt install python3 python3-venv"
    exit 1
}

# venv LOCK: .venv with exactly what LOCK says, and this project in it.
venv() {
    local lock=$1 stamp
    find_python
    stamp=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
    if [ -x .venv/bin/python ] && [ "$(cat .venv/ironroot.stamp 2>/dev/null)" = "$stamp" ]; then return 0; fi
    note "making .venv ($("$python" --version)) from $lock"
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        wanted=(python3-venv) missing="  python3-venv: makes virtual environments"
        install_wanted
        "$python" -m venv --clear .venv
    fi
    .venv/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r "$lock"
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
    printf '%s' "$stamp" > .venv/ironroot.stamp
}
