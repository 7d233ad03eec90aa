# What to-kube-ipvs.sh and back-to-kube-proxy.sh have in common; they read it, and by itself it does nothing.
# What it sets is for them to use.
# shellcheck shell=sh disable=SC2034

# The label that tells the nodes of the one from those of the other: manifests/components/migration.
LABEL=kube-ipvs
AGENT=app.kubernetes.io/name=kube-ipvs
PROXY=k8s-app=kube-proxy
PATCH=manifests/components/migration/kube-proxy.yaml
DOCUMENT=docs/migrating-from-kube-proxy.md
HEALTH_PORT=10256

all=no
assume_ipvs=no
check=
dry_run=no
interval=1
nodes=
timeout=300

say() {
    printf '%s\n' "$*"
}

# Ends the script; what it has done so far stays, and running it again goes on from there.
stop() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

misused() {
    printf '%s: %s\nTry %s --help.\n' "${0##*/}" "$*" "$0" >&2
    exit 2
}

# Needs the name of an option and how many arguments there are from it on.
takes_value() {
    [ "$2" -ge 2 ] || misused "$1 needs a value"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --all) all=yes ;;
        --assume-ipvs) assume_ipvs=yes ;;
        --dry-run) dry_run=yes ;;
        --node) takes_value "$1" $#; nodes="$nodes $2"; shift ;;
        --check) takes_value "$1" $#; check=$2; shift ;;
        --timeout) takes_value "$1" $#; timeout=$2; shift ;;
        --help | -h) usage; exit 0 ;;
        *) misused "there is no option $1" ;;
        esac
        shift
    done
    case $timeout in
    '' | *[!0-9]*) misused "--timeout is a number of seconds, not '$timeout'" ;;
    esac
    case $all$nodes in
    no) misused "say which nodes: --node NODE, as often as needed, or --all" ;;
    yes?*) misused "--all and --node exclude each other" ;;
    esac
}

in_system() {
    kubectl --namespace kube-system "$@"
}

# The names of the nodes that a selector selects.
nodes_with() {
    kubectl get nodes --selector "$1" --output 'jsonpath={.items[*].metadata.name}'
}

# Runs a command that changes the cluster, or only says which one it would be.
change() {
    if [ "$dry_run" = yes ]; then
        say "would run: kubectl $*"
    else
        say "+ kubectl $*"
        kubectl "$@" || stop "that failed; nothing after it was done"
    fi
}

# Waits until a command succeeds, for as long as --timeout says; in a dry run there is nothing to wait for.
wait_until() {
    [ "$dry_run" = yes ] && return 0
    deadline=$(($(date +%s) + timeout))
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep "$interval"
    done
}

# A field of a DaemonSet, by its path; nothing where it has none, and 1 where there is no such DaemonSet.
field_of() {
    in_system get daemonset "$1" --output "jsonpath={$2}"
}

# The pods with a label on a node, a line each: name, and whether it is ready.
pods_on() {
    in_system get pods --selector "$2" --field-selector "spec.nodeName=$1" \
        --output 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}'
}

# An error is no answer: what cannot be read counts neither as gone nor as ready.
is_gone() {
    found=$(pods_on "$1" "$2") && [ -z "$found" ]
}

is_ready() {
    found=$(pods_on "$1" "$2") && [ -n "$found" ] && ! printf '%s\n' "$found" | grep -qv ' True$'
}

ensure_cluster() {
    command -v kubectl >/dev/null || stop "there is no kubectl on the PATH"
    kubectl get nodes --output name >/dev/null || stop "kubectl does not reach the cluster, or may not list its nodes"
    field_of kube-proxy .metadata.name >/dev/null ||
        stop "kube-system has no DaemonSet kube-proxy; $DOCUMENT has the ways of other clusters"
    field_of kube-ipvs .metadata.name >/dev/null ||
        stop "kube-system has no DaemonSet kube-ipvs: install it first, with \`kubectl apply -k manifests/overlays/migration\`"
    [ "$(field_of kube-ipvs .spec.template.spec.nodeSelector.kube-ipvs)" = true ] ||
        stop "the DaemonSet kube-ipvs is not kept to nodes with the label $LABEL=true: apply manifests/overlays/migration first"
}

# Fails for a node that is not there before anything is done to the others.
ensure_nodes() {
    for node in $nodes; do
        kubectl get node "$node" --output name >/dev/null || stop "there is no node $node; nothing was changed"
    done
}

# What the operator wants to be true of a node before the next one.
check_node() {
    [ -n "$check" ] || return 0
    if [ "$dry_run" = yes ]; then
        say "would run the check on $1: $check"
        return 0
    fi
    NODE=$1 sh -c "$check" || stop "the check fails on $1, after it was moved; no further node was touched. $2"
}
