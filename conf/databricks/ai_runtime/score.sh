#!/usr/bin/env bash
# What the job `ai_runtime` runs. A retry runs it again, and it goes on where it was.
set -euo pipefail

exec python -m sparkinfer score \
    --engine local \
    --num-workers 8 \
    --device cuda \
    --input /Volumes/main/reviews/raw \
    --input-col text \
    --model models:/main.reviews.sentiment/1 \
    --output /Volumes/main/reviews/scored/ai_runtime \
    --progress lines
