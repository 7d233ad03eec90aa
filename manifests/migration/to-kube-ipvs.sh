#!/bin/sh
# Moves nodes from kube-proxy in IPVS mode to kube-ipvs: steps 2 to 4 of docs/migrating-from-kube-proxy.md, with a check after each.
set -u

usage() {
    cat <<END
Usage: $0 (--node NODE... | --all) [OPTIONS]

Moves nodes of a cluster from kube-proxy in IPVS mode to kube-ipvs, one after the other. The DaemonSet kube-ipvs has to be installed already, with
manifests/overlays/migration: it runs on nodes with the label kube-ipvs=true alone. What is done already is not done again, so that this can be run
again after it has stopped.

Of each node: kube-proxy's pod ends, which leaves what it has made; the agent starts and takes over; this waits until it is ready.

  --node NODE       a node to move; may be given more than once
  --all             all Linux nodes
  --check COMMAND   a command for the shell to run after each node, with its name in \$NODE; this stops where it fails
  --timeout SECONDS how long to wait for each pod that has to end or become ready (default 300)
  --assume-ipvs     do not look for IPVS mode in the ConfigMap kube-proxy, where a cluster has its configuration elsewhere
  --dry-run         say what would be done, and change nothing
  --help            this text

Exit status: 0 when all nodes are moved, 1 when it has stopped, 2 for a wrong option.
END
}

# shellcheck source=manifests/migration/steps.sh
. "$(dirname "$0")/steps.sh"
patch=$(dirname "$0")/../components/migration/kube-proxy.yaml

ensure_ipvs() {
    [ "$assume_ipvs" = yes ] && return 0
    configuration=$(in_system get configmap kube-proxy --output 'jsonpath={.data.config\.conf}') ||
        stop "the ConfigMap kube-proxy cannot be read; if kube-proxy is in IPVS mode all the same, give --assume-ipvs"
    printf '%s\n' "$configuration" | grep -Eq '^mode: *"?ipvs"?[[:space:]]*$' ||
        stop "kube-proxy is not in IPVS mode by its ConfigMap; from other modes there is a pause, for which $DOCUMENT has the steps"
}

# Does not end it anywhere before a node has the label.
keep_kube_proxy_off() {
    case $(field_of kube-proxy .spec.template.spec.affinity.nodeAffinity) in
    *'"kube-ipvs"'*) say "kube-proxy is kept off nodes with the label $LABEL already" ;;
    *) change --namespace kube-system patch daemonset kube-proxy --patch-file "$patch" ;;
    esac
    [ "$dry_run" = yes ] && return 0
    in_system rollout status daemonset kube-proxy --timeout "${timeout}s" ||
        stop "kube-proxy is not rolled out after $timeout s; no node was moved. Look at its pods"
}

move() {
    node=$1
    back="To take it back: $(dirname "$0")/back-to-kube-proxy.sh --node $node"
    say "--- $node"
    change label node "$node" "$LABEL=true" --overwrite
    wait_until is_gone "$node" "$PROXY" ||
        stop "kube-proxy has not ended on $node after $timeout s, and must not run beside the agent for long. $back"
    wait_until is_ready "$node" "$AGENT" ||
        stop "the agent on $node is not ready after $timeout s. What kube-proxy has made keeps serving, but does not follow changes. \
\`kubectl -n kube-system logs\` and \`describe\` of its pod say why. $back"
    [ "$dry_run" = yes ] && return 0
    pod=$(pods_on "$node" "$AGENT" | cut -d ' ' -f 1)
    if in_system logs "$pod" 2>/dev/null | grep -q 'taking over from kube-proxy'; then
        say "$pod has taken over from kube-proxy, and is ready"
    else
        say "$pod is ready; it says nothing of kube-proxy (it has been there for longer, or has started again)"
    fi
}

read_arguments "$@"
ensure_cluster
ensure_ipvs
if [ "$all" = yes ]; then
    nodes=$(nodes_with kubernetes.io/os=linux) || stop "the nodes cannot be listed"
fi
ensure_nodes
keep_kube_proxy_off
for node in $nodes; do
    move "$node"
    check_node "$node" "To take it back: $(dirname "$0")/back-to-kube-proxy.sh --node $node"
done

left=$(nodes_with "kubernetes.io/os=linux,$LABEL!=true") || stop "the nodes cannot be listed"
if [ -n "$left" ]; then
    say "done; still with kube-proxy: $left"
else
    say "done; no node is left with kube-proxy. Step 5 of $DOCUMENT removes it, when you are sure"
fi
say "\`kubectl get events -A --field-selector reportingComponent=kube-ipvs\` names what is not served as it is written"
