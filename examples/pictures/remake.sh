#!/usr/bin/env bash
# Makes the pictures of the README again, by the commands that stand beside them there.
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --workspace --examples
root=$(cargo locate-project --workspace --message-format plain)
programs=${root%/Cargo.toml}/target/release

"$programs/examples/picture_grid" emoji-grid.png
"$programs/examples/solver_comparison" .
"$programs/tweedie" txt2img "a panda on a pink background" --seed 7 --num-images 4 --grid --scale 2 --output pandas.png --force
"$programs/tweedie" txt2img "a castle at sunset" --scheduler "DPM++ 2M Karras" --steps 20 --seed 2 --scale 2 --output castle.png --force
"$programs/tweedie" sample mnist --classes 0,1,2,3,4,5,6,7,8,9 --num-images 40 --seed 1 --grid --output digits.png --force
cd inpainting
"$programs/tweedie" txt2img "a fox on a blue background" --seed 4 --output fox.png --force
"$programs/tweedie" txt2img "a panda on a pink background" --seed 1 --output panda.png --force
"$programs/tweedie" inpaint --image fox.png --mask fox-mask.png "a frog on a blue background" --seed 3 --output fox-to-frog.png --force
"$programs/tweedie" inpaint --image panda.png --mask panda-mask.png --mask-grow 3 "a panda on a green background" --seed 4 \
    --output panda-on-green.png --force
