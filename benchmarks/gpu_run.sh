#!/usr/bin/env bash
# Measure and check all that needs a GPU, in at most nine minutes. docs/benchmarks.md says how to read it.
#
#   benchmarks/gpu_run.sh [--parts "PART ..."] [--budget SECONDS] [--pipeline DIR] [--small] [OUT]
#
# OUT is where the files go: $OUT or gpu_results by default. The parts, in this order:
#
#   facts        GPU, versions, and what the GPU reaches at most
#   pytest       the tests that need a GPU
#   gpu_checks   what the trainer relies on, at the sizes of Stable Diffusion 3.5 Large
#   train_step   time and memory of a training step
#   whole_run    the trainer on a pipeline of random weights, which is written meanwhile (28 GB)
#   samples      `mimicry samples` with what whole_run trained
#
# A part that fails or takes too long leaves the others alone; one that no time is left for is skipped. With
# --pipeline the pipeline is kept in DIR, or taken from there. --small takes small models, also without a GPU.
# PYTHON is the interpreter: .venv/bin/python by default where there is one, else python3.
set -u
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

ALL="facts pytest gpu_checks train_step whole_run samples"
parts=$ALL budget="" small="" pipeline="" out=${OUT:-gpu_results}

refuse() {
    echo "error: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --parts | --budget | --pipeline)
        [ $# -gt 1 ] || refuse "$1 needs a value"
        case $1 in
        --parts) parts=$2 ;;
        --budget) budget=$2 ;;
        --pipeline) pipeline=$2 ;;
        esac
        shift 2
        ;;
    --small) small=yes && shift ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
    -*) refuse "$1 is not an option; see --help" ;;
    *) out=$1 && shift ;;
    esac
done
for part in $parts; do
    case " $ALL " in *" $part "*) ;; *) refuse "--parts: '$part' is none of $ALL" ;; esac
done
if [ -z "$small" ] && ! nvidia-smi >/dev/null 2>&1; then
    echo "There is no GPU here: small models on the CPU, a dry run."
    small=yes
fi
budget=${budget:-$([ "$small" ] && echo 3600 || echo 540)}
case $budget in *[!0-9]* | "") refuse "--budget: '$budget' is not a number of seconds" ;; esac
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }

# Folders are meant from where the script was called.
case $out in /*) ;; *) out=$from/$out ;; esac
case $pipeline in "" | /*) ;; *) pipeline=$from/$pipeline ;; esac
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit
work=$(mktemp -d) || exit
writer="" running="" shared=""
# Everything that is printed is kept, too.
exec 3>&1 4>&2 > >(tee "$out/run.log") 2>&1
log=$!

finish() {
    [ -z "$writer$running" ] || kill $writer $running 2>/dev/null
    rm -rf "$work" ${shared:+"$shared"}
    exec 1>&3 2>&4
    # Until the log is whole; what a killed program has left may hold it open.
    for _ in {1..50}; do kill -0 "$log" 2>/dev/null && sleep 0.1; done
}
trap finish EXIT
trap 'exit 130' INT TERM

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
# New folders: the first compilation finds an empty cache, and nothing is left behind.
export XDG_CACHE_HOME="$work/cache" TMPDIR="$work"

sizes=$([ "$small" ] && echo small || echo large)
geometry=$sizes

left() { echo $((budget - SECONDS)); }
wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac }
gib_free() { echo $(($(df -Pk "$1" 2>/dev/null | awk 'NR == 2 {print $4}') >> 20)); }

# Where 28 GB fit: on disk, or in memory if the disk is full or slow and there is plenty of memory.
choose_folder() {
    local need=32 memory begin milliseconds
    memory=$(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) >> 20))
    pipeline=$work/pipeline
    begin=$(date +%s%N)
    dd if=/dev/zero of="$work/speed" bs=16M count=32 conv=fdatasync 2>/dev/null
    milliseconds=$((($(date +%s%N) - begin) / 1000000 + 1))
    rm -f "$work/speed"
    echo "disk: $(gib_free "$work") GiB free, 0.5 GiB written in $milliseconds ms; memory: $memory GiB available"
    if [ "$milliseconds" -gt 1500 ] || [ "$(gib_free "$work")" -lt $need ]; then
        if [ "$(gib_free /dev/shm)" -ge $need ] && [ "$memory" -ge 90 ]; then
            shared=$(mktemp -d -p /dev/shm) && pipeline=$shared/pipeline
            echo "the pipeline goes into /dev/shm: its files count as shared memory of who reads them"
        elif [ "$(gib_free "$work")" -lt $need ]; then
            echo "28 GB fit nowhere here: the pipeline has fewer layers"
            sizes=cut
        fi
    fi
}

write_pipeline() {
    [ "$small" ] || [ -n "$pipeline" ] || choose_folder
    pipeline=${pipeline:-$work/pipeline}
    [ ! -e "$pipeline" ] || return
    mkdir -p "$(dirname "$pipeline")"
    "$PYTHON" -m benchmarks.random_pipeline "$pipeline" --sizes "$sizes" &
    writer=$!
}

# Timings begin when nothing else uses the GPU. $1: the most seconds to wait.
wait_for_pipeline() {
    local until=$((SECONDS + $1))
    [ -n "$pipeline" ] || return
    while [ -n "$writer" ] && kill -0 "$writer" 2>/dev/null && [ $SECONDS -lt $until ]; do sleep 0.2; done
    [ ! -e "$pipeline" ] || { writer="" && return; }
    echo "no pipeline yet, $(du -sm "$pipeline.partial" 2>/dev/null | cut -f1) MB of it: a smaller one will do"
    kill "$writer" 2>/dev/null
    wait "$writer"
    rm -rf "$pipeline.partial"
    writer="" pipeline=$work/smaller sizes=$([ "$small" ] && echo small || echo cut)
}

summary=""
# run PART MOST LEAST COMMAND...: at most MOST seconds; LEAST must be left. {} is the seconds that it has.
run() {
    local part=$1 most=$2 least=$3 code begin=$SECONDS
    shift 3
    wants "$part" || return
    [ "$(left)" -ge "$most" ] || most=$(left)
    if [ "$most" -lt "$least" ]; then
        summary+="$(printf '%-11s skipped: it needs %s s, and %s s are left' "$part" "$least" "$(left)")"$'\n'
        return
    fi
    printf '\n== %s, at most %s s, %s s after the start\n' "$part" "$most" $SECONDS
    # The program ends a little earlier by itself, and says what it did not do.
    timeout -k 5 "$most" "${@//\{\}/$((most - 5))}" &
    running=$!
    wait "$running"
    code=$?
    running=""
    case $code in
    0) code="done" ;;
    124 | 137) code="ended after $most s" ;;
    *) code="failed, with exit code $code" ;;
    esac
    summary+="$(printf '%-11s %s, %s s' "$part" "$code" $((SECONDS - begin)))"$'\n'
}

gpu_tests() {
    local files
    mapfile -t files < <(grep -rlE 'mark\.gpu' tests --include='test_*.py')
    run pytest $((small_factor * 110)) 20 bash -c 'set -o pipefail; "$@" 2>&1 | tee "$0"' "$out/pytest.txt" \
        "$PYTHON" -m pytest -m gpu -p no:cacheprovider -v --durations 5 "${files[@]}"
}

small_factor=$([ "$small" ] && echo 10 || echo 1)
run facts $((small_factor * 40)) 10 "$PYTHON" -m benchmarks.gpu_facts --output "$out/facts.json"
if wants whole_run || wants samples; then write_pipeline; fi
gpu_tests
wait_for_pipeline $((budget / 4))
run gpu_checks $((small_factor * 150)) 30 "$PYTHON" -m benchmarks.gpu_checks --geometry "$geometry" \
    --seconds {} --output "$out/gpu_checks.json"
run train_step $((small_factor * 170)) 30 "$PYTHON" -m benchmarks.train_step --geometry "$geometry" \
    --seconds {} --output "$out/train_step.json"
run whole_run $((small_factor * 170)) 40 "$PYTHON" -m benchmarks.whole_run --sizes "$sizes" \
    --folder "$pipeline" --work "$work/whole_run" --steps 8 --memory-limits-gib 15.3 23.3 0 \
    --seconds {} --output "$out/whole_run.json"
run samples $((small_factor * 100)) 30 "$PYTHON" -m benchmarks.samples_run --sizes "$sizes" \
    --folder "$pipeline" --work "$work/whole_run" --seconds {} --output "$out/samples.json"

printf '\n== %s s in all, files in %s\n%s' $SECONDS "$out" "$summary"
case $summary in *failed* | *ended* | *skipped*) exit 1 ;; esac
