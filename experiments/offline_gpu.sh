#!/usr/bin/env bash
# Measure on a GPU machine without a network, which has JAX for CUDA, Flax, Optax, Orbax, chex, safetensors, scikit-learn
# and PyTorch, but not everything that the package needs.
#
#   bash experiments/offline_gpu.sh pack FOLDER [DATA_DIR]    with a network: Python wheels, and CIFAR-10 as JPEG files
#   bash experiments/offline_gpu.sh run FOLDER OUTPUT PART... on the GPU machine, in a checkout that holds FOLDER
#
# Parts: accelerator (experiments.accelerator), teacher (experiments.train_teacher, small enough to ship), job
# (configs/cifar10.py in full with that teacher), compare (experiments.compare of cifar10.py:cpu with the teacher that
# the repository holds; one run after the other, because processes that share a GPU wait for each other). Each ends
# after the seconds in LIMIT_<PART>, keeps what it has, and writes its log to OUTPUT. The status is 1 if a part failed
# or was cut off. FOLDER stays below 64 MB: CIFAR-10 in JPEG takes 50.
#
# The job takes longer than one call may: give JOB_STATE=FOLDER2, a folder that the machine keeps, and call again; the
# run and the compiled programs are there, and it goes on from its last checkpoint. A checkpoint of ten models takes
# about 130 MB, so that it is not in OUTPUT.
set -uo pipefail
verb=${1:?pack or run}
folder=$(realpath -m "${2:?a folder}")

pack() {
  mkdir -p "$folder/wheels"
  python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d "$folder/wheels" \
    'ml-collections>=1.1,<2' 'dm-pix>=0.4.4,<0.5'
  if [ $# -gt 0 ]; then
    python -m experiments.offline_images pack "$folder/cifar10.npz" --data-dir="$1"
  fi
  du -sh "$folder"
}

part() { # name, seconds, command...
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  echo "+ $name, at most $seconds s: $*"
  local status=0
  timeout --signal=TERM --kill-after=20 "$seconds" "$@" >"$output/$name.log" 2>&1 || status=$?
  echo "+ $name ended with status $status after $((SECONDS - began)) s"
  tail -n 4 "$output/$name.log"
  return "$status"
}

run() {
  output=$(realpath -m "$1")
  shift
  mkdir -p "$output"
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$folder"/wheels/*.whl || exit 1
  export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1
  # Programs that two parts share are compiled once.
  state=$(realpath -m "${JOB_STATE:-$site}")
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$state/compiled}
  data=${DATA:-$site/cifar10_images.npz}
  if [ -f "$folder/cifar10.npz" ]; then
    python3 -m experiments.offline_images unpack "$folder/cifar10.npz" "$data" || exit 1
  fi
  nvidia-smi -L 2>/dev/null | tee "$output/device.txt"
  failed=0
  for name in "$@"; do
    case $name in
      accelerator)
        part accelerator "${LIMIT_ACCELERATOR:-300}" python3 -m experiments.accelerator \
          --minutes="${ACCELERATOR_MINUTES:-4}" --output="$output/accelerator.json" ${ACCELERATOR_ARGUMENTS:-} ||
          failed=1
        ;;
      teacher)
        rm -rf "$output/teacher" # a copy into an older one would leave that in place
        part teacher "${LIMIT_TEACHER:-240}" python3 -m experiments.train_teacher --config="${CONFIG:-configs/cifar10.py}" \
          --config.data.name="npz:$data" --workdir="$site/teacher" ${TEACHER_ARGUMENTS:-} || failed=1
        cp -r "$site/teacher/export" "$output/teacher" 2>/dev/null
        cp "$site/teacher/curve.jsonl" "$output/teacher_curve.jsonl" 2>/dev/null
        ;;
      job)
        part job "${LIMIT_JOB:-900}" python3 -m ssdd_jax.main --config="${CONFIG:-configs/cifar10.py}" \
          --config.data.name="npz:$data" --config.teacher.source="${TEACHER:-$output/teacher}" --workdir="$state/job" \
          ${JOB_ARGUMENTS:-} || failed=1
        mkdir -p "$output/job"
        (cd "$state/job" && tar czf "$output/job/job.tgz" --exclude=checkpoints --exclude=features --exclude=data .)
        ;;
      compare)
        # One network per set, and no time lost to tuning convolutions for each of the many small programs.
        XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0" part compare "${LIMIT_COMPARE:-800}" \
          python3 -m experiments.compare --config=configs/cifar10.py:cpu --N=20,50 --config.data.name="npz:$data" \
          --config.evaluate.seeds=1 --workdir="$site/compare" ${COMPARE_ARGUMENTS:---methods=boost,krr_st,random} ||
          failed=1
        (cd "$site/compare" && tar czf "$output/compare.tgz" --exclude=checkpoints --exclude=features --exclude=compiled \
          --exclude=data --exclude=figures --exclude=report.html --exclude=experts .)
        ;;
      *) echo "there is no part $name" && failed=1 ;;
    esac
  done
  return "$failed"
}

shift 2
case $verb in
  pack) pack "$@" ;;
  run) run "$@" ;;
  *) echo "pack or run, not $verb" && exit 2 ;;
esac
