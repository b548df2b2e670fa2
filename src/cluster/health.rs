//! What says whether the cluster itself is well: the lease of kube-controller-manager, nodes.
