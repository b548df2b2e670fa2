//go:build tools

// Package tools only names the program of this module. It is a module of its own so that a change here leaves the
// Kubernetes programs as they are; its Kubernetes libraries are of their version, so that they are compiled once.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
