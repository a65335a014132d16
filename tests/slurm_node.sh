#!/usr/bin/env bash
# A SLURM of one node on this machine, for tests: Debian's packages slurm-wlm and munge, as root.
#
#   eval "$(tests/slurm_node.sh start FOLDER)"   starts it afresh, prints `export SLURM_CONF=...`
#   tests/slurm_node.sh stop FOLDER              kills its jobs, stops it
#
# FOLDER holds all there is of it: slurm.conf, keys, socket, state, logs. Of its two partitions,
# `high` preempts jobs of `low` (the default) and requeues them. Seconds, from the environment:
#   GRACE_TIME     that a preempted job goes on after its steps got SIGTERM (0)
#   KILL_WAIT      then, and after scancel, requeue and the time limit: from SIGTERM to SIGKILL (30)
#   REQUEUE_DELAY  until a requeued job may start again (5; SLURM's own default is 120)
set -euo pipefail

fail() {
  echo "slurm_node.sh: $1" >&2
  exit 1
}

running() { # running NAME: is the pid file's process that daemon, and no zombie of it?
  pgrep --pidfile "$folder/$1.pid" --exact --runstates DRS "$1" >/dev/null 2>&1
}

until_true() { # until_true SECONDS COMMAND...
  local end=$((SECONDS + $1))
  while ! "${@:2}"; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

no_jobs() { [[ -z $(timeout 5 squeue --noheader 2>/dev/null) ]]; }
idle() { [[ $(timeout 5 sinfo --noheader --partition low --format %T 2>/dev/null) == idle ]]; }
stopped() { ! running "$1"; }

stop() {
  if running munged && running slurmctld && running slurmd; then
    timeout 10 scancel --user root --state PENDING || true
    timeout 10 scancel --user root --signal KILL --full || true
    until_true 60 no_jobs || fail "jobs do not end: see squeue"
  fi
  for name in slurmd slurmctld munged; do
    running "$name" || continue
    pkill --pidfile "$folder/$name.pid" --exact "$name" || true
    until_true 20 stopped "$name" || fail "$name does not stop: see $folder/$name.log"
  done
}

start() {
  local node machine ports
  mkdir -p "$folder"/{state,spool}
  node=$(hostname --short)
  machine=$(slurmd -C | grep NodeName)
  # Free ones: several of these may run on a machine.
  read -ra ports < <(python3 -c 'from socket import create_server
both = [create_server(("", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in both))')
  cat >"$SLURM_CONF" <<CONF
ClusterName=seglab
SlurmctldHost=$node(localhost)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munged.socket,cred_expire=${REQUEUE_DELAY:-5}
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=${KILL_WAIT:-30}
ReturnToService=2
$machine NodeAddr=localhost State=UNKNOWN
PartitionName=DEFAULT Nodes=$node State=UP MaxTime=INFINITE
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=${GRACE_TIME:-0}
PartitionName=high PriorityTier=10 PreemptMode=OFF
CONF
  [[ -s $folder/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  # By force: a folder that only root can enter, such as pytest's, is good enough.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munged.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munged.seed" 2>>"$folder/munged.log"
  slurmctld -c -f "$SLURM_CONF" # -c: without the jobs of an earlier start
  slurmd -c -f "$SLURM_CONF"
  until_true 60 idle || fail "no idle node after 60 s: see the logs in $folder"
  echo "export SLURM_CONF=$SLURM_CONF"
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || fail "expected: slurm_node.sh start|stop FOLDER"
PATH+=:/usr/sbin:/sbin
command -v munged slurmctld slurmd >/dev/null && ((EUID == 0)) ||
  fail "needs root and Debian's packages: apt-get install slurm-wlm munge"
folder=$(realpath --canonicalize-missing "$2")
export SLURM_CONF=$folder/slurm.conf
stop
if [[ $1 == start ]]; then start; fi
