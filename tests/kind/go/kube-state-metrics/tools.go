//go:build tools

// Package tools only names the program of this module. It is a module of its own because kube-state-metrics does not build
// with the Kubernetes libraries of the other programs.
package tools

import _ "k8s.io/kube-state-metrics/v2"
