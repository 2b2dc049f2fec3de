# Sourced by the other scripts, from the repository root: puts `cmg` of this checkout on the PATH.
# Inside an active virtual environment that one is used; else .venv is made, and reused only if it was made for this
# very pyproject.toml and Python.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "cmg needs Python 3.11 or newer; set PYTHON to one" >&2
    exit 2
}
if [ -z "${VIRTUAL_ENV:-}" ]; then
    stamp=$({ cat pyproject.toml; "$python" -VV; pwd; } | cksum)
    if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
        rm -rf .venv
        "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --upgrade pip
        PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --editable '.[test]'
        echo "$stamp" >.venv/stamp
    fi
    . .venv/bin/activate
else
    PYTHONWARNINGS=ignore python -m pip install --quiet --editable '.[test]'
fi
