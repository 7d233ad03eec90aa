#!/bin/sh
# Moves nodes back from kube-ipvs to kube-proxy in IPVS mode: the last part of docs/migrating-from-kube-proxy.md, with a check after each step.
set -u

usage() {
    cat <<END
Usage: $0 (--node NODE... | --all) [OPTIONS]

Moves nodes of a cluster back from kube-ipvs to kube-proxy in IPVS mode, one after the other. Both DaemonSets have to be as they are on the way to
kube-ipvs: the agent on nodes with the label kube-ipvs=true alone, and kube-proxy kept off those. What is done already is not done again, so that this
can be run again after it has stopped.

Of each node: the agent ends, which leaves what it has made; kube-proxy starts and takes over; then a pod with the agent's image removes what only the
agent had (\`kube-ipvs cleanup --hand-over\`), which it refuses to do as long as kube-proxy has no packet rules there.

  --node NODE       a node to move; may be given more than once
  --all             all nodes with the label
  --check COMMAND   a command for the shell to run after each node, with its name in \$NODE; this stops where it fails
  --timeout SECONDS how long to wait for each pod that has to end or become ready (default 300)
  --dry-run         say what would be done, and change nothing
  --help            this text

Exit status: 0 when all nodes are moved, 1 when it has stopped, 2 for a wrong option.
END
}

# shellcheck source=manifests/migration/steps.sh
. "$(dirname "$0")/steps.sh"

ensure_kube_proxy_is_kept_off() {
    case $(field_of kube-proxy .spec.template.spec.affinity.nodeAffinity) in
    *'"kube-ipvs"'*) ;;
    *) stop "kube-proxy is not kept off nodes with the label $LABEL, so both would run there: apply $PATCH to it first" ;;
    esac
}

# By way of the API server, which asks the node.
is_healthy() {
    kubectl get --raw "/api/v1/nodes/$1:$HEALTH_PORT/proxy/healthz" >/dev/null 2>&1
}

phase_of() {
    in_system get pod "$1" --output 'jsonpath={.status.phase}'
}

has_succeeded() {
    [ "$(phase_of "$1")" = Succeeded ]
}

# A pod like the agent's that runs once. Until kube-proxy has its rules the program ends with an error, and the kubelet starts it again.
remove_the_agents() {
    pod=kube-ipvs-hand-over.$1
    image=$(field_of kube-ipvs '.spec.template.spec.containers[0].image') || stop "the image of the DaemonSet kube-ipvs cannot be read"
    secrets=$(field_of kube-ipvs .spec.template.spec.imagePullSecrets) || stop "the DaemonSet kube-ipvs cannot be read"
    spec=$(
        cat <<END
{"apiVersion": "v1", "spec": {
  "nodeName": "$1", "hostNetwork": true, "dnsPolicy": "Default", "restartPolicy": "OnFailure", "automountServiceAccountToken": false,
  "tolerations": [{"operator": "Exists"}], "imagePullSecrets": ${secrets:-[]},
  "containers": [{
    "name": "hand-over", "image": "$image", "command": ["kube-ipvs", "cleanup", "--hand-over"],
    "securityContext": {
      "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
      "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumeMounts": [
      {"name": "xtables-lock", "mountPath": "/run/xtables.lock"}, {"name": "run", "mountPath": "/run/kube-ipvs"}]}],
  "volumes": [
    {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
    {"name": "run", "hostPath": {"path": "/run/kube-ipvs", "type": "DirectoryOrCreate"}}]}}
END
    )
    if [ "$dry_run" = yes ]; then
        say "would run \`kube-ipvs cleanup --hand-over\` on $1, in the pod $pod"
        return 0
    fi
    # One that an earlier run has left.
    in_system delete pod "$pod" --ignore-not-found || stop "the pod $pod of an earlier run cannot be deleted"
    say "+ kube-ipvs cleanup --hand-over, on $1 in the pod $pod"
    in_system run "$pod" --image "$image" --restart OnFailure --overrides "$spec" >/dev/null ||
        stop "the pod $pod cannot be made. $1 is with kube-proxy; run \`kube-ipvs cleanup --hand-over\` there by other means"
    if ! wait_until has_succeeded "$pod"; then
        in_system logs "$pod" --tail 5 >&2
        stop "what only the agent had is not removed from $1 after $timeout s; above is what the pod $pod has said last. kube-proxy serves $1"
    fi
    in_system logs "$pod"
    in_system delete pod "$pod" || stop "the pod $pod has done its work and cannot be deleted"
}

move() {
    say "--- $1"
    change label node "$1" "$LABEL-"
    wait_until is_gone "$1" "$AGENT" || stop "the agent has not ended on $1 after $timeout s: look at its pod"
    wait_until is_ready "$1" "$PROXY" ||
        stop "kube-proxy is not ready on $1 after $timeout s: look at its pod. What the agent has made keeps serving, but does not follow changes"
    wait_until is_healthy "$1" ||
        stop "kube-proxy's /healthz on $1 does not answer 200 after $timeout s, by /api/v1/nodes/$1:$HEALTH_PORT/proxy/healthz: look at its log"
    remove_the_agents "$1"
}

read_arguments "$@"
ensure_cluster
ensure_kube_proxy_is_kept_off
if [ "$all" = yes ]; then
    nodes=$(nodes_with "$LABEL=true") || stop "the nodes cannot be listed"
fi
ensure_nodes
for node in $nodes; do
    move "$node"
    check_node "$node" "To move it to kube-ipvs again: $(dirname "$0")/to-kube-ipvs.sh --node $node"
done
left=$(nodes_with "$LABEL=true") || stop "the nodes cannot be listed"
say "done; with kube-ipvs: ${left:-no node}"
