#!/usr/bin/env bash
# Runs train.sbatch for real on a Slurm of one machine (two nodes by port, CPUs), queued again in its middle; as root:
#   apt-get install slurm-wlm munge && bash examples/cluster/try_slurm.sh FOLDER
# FOLDER, a new one, keeps the daemons' logs, the job's log and the run. Ends with 0 if the run went on where it was.
set -euo pipefail
folder=$(realpath -m "${1:?name a new folder}")
repo=$(cd "$(dirname "$0")/../.." && pwd)
mkdir "$folder"
cd "$folder"
export SLURM_CONF=$folder/slurm.conf PYTHONPATH=$repo MASTER_ADDR=127.0.0.1

host=$(hostname)
cat > slurm.conf <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=16817
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdSpoolDir=$folder/spool.%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
NodeName=a NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2
NodeName=b NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2
PartitionName=all Nodes=a,b Default=YES MaxTime=INFINITE State=UP
END
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > cgroup.conf
mkdir state spool.a spool.b
(umask 077 && head -c 1024 /dev/urandom > munge.key)

end() { # the process that a file names: by SIGTERM, or by SIGKILL where it does not heed that within ten seconds
    local pid
    pid=$(<"$1") || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in {1..100}; do
        sleep 0.1
        kill -0 "$pid" 2>/dev/null || return 0
    done
    kill -KILL "$pid" 2>/dev/null || true
}

stop() {
    scancel --user root 2>/dev/null || true
    sleep 2
    for daemon in slurmd.a slurmd.b slurmctld munge; do # each before those that it asks
        [[ ! -f $folder/$daemon.pid ]] || end "$folder/$daemon.pid"
    done
}
trap stop EXIT
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" 2>/dev/null
slurmctld
slurmd -N a
slurmd -N b

cd "$repo"
.venv/bin/python - "$folder" > "$folder/words" <<'END'
import sys
from pathlib import Path
from molmo_ds.testing import run_files
print("preset=tiny", *run_files.make(Path(sys.argv[1])), "max_steps=60", "save_interval=1000", sep="\n")
END
mapfile -t words < "$folder/words"
job=$(sbatch --parsable --nodes 2 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 --output="$folder/job.log" \
    examples/cluster/train.sbatch "${words[@]}" out="$folder/out")

until [[ -f $folder/out/log.jsonl ]]; do sleep 0.5; done
until (($(wc -l < "$folder/out/log.jsonl") > 20)); do sleep 0.5; done
scancel --signal=USR1 --batch "$job" # what Slurm sends before the time is over
until [[ $(squeue --noheader --format=%T --jobs "$job") == PENDING ]]; do sleep 0.5; done
scontrol update jobid="$job" StartTime=now # or it waits for two minutes
until [[ -f $folder/out/DONE ]]; do sleep 0.5; done

steps=$(grep -o '"step": [0-9]*' "$folder/out/log.jsonl" | grep -o '[0-9]*')
echo "steps logged: $(tr '\n' ' ' <<< "$steps")"
grep 'resumed from step\|train.sbatch:' "$folder/job.log"
[[ $steps == "$(seq 60)" ]]
