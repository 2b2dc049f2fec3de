#!/usr/bin/env bash
# The main job from nothing: make the demo line, fit, score, show the CSV, evaluate. Writes to demo/ (or $1).
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/venv.sh
work=${1:-demo}
mkdir -p "$work"
[ -f "$work/line/metadata.csv" ] || cmg demo "$work/line"
cmg fit --images "$work/line" --captions "$work/line/metadata.csv" --out "$work/model.cmg"
cmg mask --images "$work/line" --captions "$work/line/metadata.csv" --out "$work/masks"
find "$work/line/images" -name 'test*' | sort |
    cmg score --model "$work/model.cmg" --captions "$work/line/metadata.csv" --maps "$work/maps" - >"$work/scores.csv"
head -n 8 "$work/scores.csv"
cmg eval --model "$work/model.cmg" --images "$work/line" --labels "$work/line/metadata.csv" --json "$work/evaluation.json" --report "$work/report.html"
echo "look at $work/report.html, $work/maps and $work/masks"
