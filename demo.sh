#!/bin/sh
# The whole pipeline on phantom slides: what `make demo` runs, and the shortest description of what papsmear does.
# Started again, each stage keeps what is finished. Usage: demo.sh [FOLDER [OPTIONS OF papsmear phantom]]
set -eu
demo=${1:-demo}
[ $# -eq 0 ] || shift
cohort=$demo/cohort
herlev=${HERLEV:-$cohort/cells/herlev} # HERLEV: the real set, to probe on that

stage() { # stage NAME COMMAND...: says what runs and notes how long it took
    name=$1; shift
    printf '\n== %s: %s\n' "$name" "$*" >&2
    began=$(date +%s)
    "$@"
    printf '%s,%s\n' "$name" "$(($(date +%s) - began))" >>"$demo/timings.csv.part"
}

mkdir -p "$demo"
echo stage,seconds >"$demo/timings.csv.part"

# Small slides, and twenty times the abnormal cells that phantoms have by default: what minutes on a CPU can learn.
stage phantom papsmear phantom "$cohort" --slides 24 --prevalence 0.5 --diameter_mm 2 --abnormal 0.1 "$@"
case " $* " in
*" --cells"*) ;; # phantom has dealt the real cells to folds, so that no two folds share one
*) stage split papsmear split "$cohort/slides.csv" --folds 4 ;;
esac
stage tile papsmear tile -c configs/tiling.yaml --slides "$cohort/slides.csv" --out "$demo/shards"
stage pretrain lightning fit -c configs/ssl/tiny.yaml --trainer.default_root_dir "$demo/ssl" \
    --data.shards "$demo/shards" --data.slides "$cohort/slides.csv" --data.fold 0
stage embed papsmear embed -c configs/embed.yaml --shards "$demo/shards" \
    --encoder "$demo/ssl/encoder.safetensors" --out "$demo/features"
stage probe papsmear probe -c configs/probes.yaml --out "$demo/probe" \
    --encoders "{DINO: $demo/ssl/encoder.safetensors, random weights: random:resnet10t}" \
    --sets.herlev "$herlev" --sets.sipakmed "$cohort/cells/sipakmed" --ks "[1, 3, 5, 7, 10, 15]"
stage mil lightning fit -c configs/mil.yaml --trainer.default_root_dir "$demo/mil" \
    --data.features "$demo/features" --data.slides "$cohort/slides.csv" --data.fold 0
stage test lightning test -c configs/mil.yaml --trainer.default_root_dir "$demo/mil" \
    --data.features "$demo/features" --data.slides "$cohort/slides.csv" --data.fold 0
# The slides of the held-out fold, which neither the encoder nor the head has seen.
slides=$(sed -n "2,\$s|^\([^,]*\),.*|$cohort/slides/\1.svs|p" "$demo/mil/test.csv")
# shellcheck disable=SC2086 # one word a slide
stage diagnose papsmear diagnose $slides --model "$demo/mil" --out "$demo/diagnosis"

mv "$demo/timings.csv.part" "$demo/timings.csv"
python -m papsmear.mil.demo "$demo"
