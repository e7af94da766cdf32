// Package k8s tests the chart on a real Kubernetes: `make test-k8s`. Without a
// cluster its tests are skipped. What it talks to:
//
//   - KUBECONFIG is set: that cluster, by kubectl and helm of PATH. MICS_K8S_LOAD
//     is a command that brings an image archive to its nodes, such as `kind load
//     image-archive`; MICS_K8S_REDIS is an image of Redis for it.
//   - else MICS_K8S_CLUSTER (../shared/k8s/cluster), a tool that runs a one-node
//     cluster: `install`, `up`, `down`, `status`, `run CMD`, `image`, `debimage`,
//     `load`, `crds`. The archives are made by it in both cases.
//
// The tests are one story on one release, in the order of the file names, and end
// with the control that has to fail.
package k8s
