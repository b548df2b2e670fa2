// peers keeps Deployments as a Go controller does: an informer of
// controller-runtime over whole objects, which is what reconcilers read from.
//
//	peers http://127.0.0.1:PORT
//
// It prints a line when the list is complete, and then lives until it is ended;
// the benchmark reads its memory from outside.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	runtimelog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

func main() {
	runtimelog.SetLogger(zap.New())
	if len(os.Args) != 2 {
		log.Fatal("usage: peers URL")
	}
	ctx := context.Background()
	// As managers have it: no limit of the client's own.
	objects, err := cache.New(&rest.Config{Host: os.Args[1], QPS: -1}, cache.Options{Scheme: scheme.Scheme})
	if err != nil {
		log.Fatal(err)
	}
	informer, err := objects.GetInformer(ctx, &appsv1.Deployment{}, cache.BlockUntilSynced(false))
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		if err := objects.Start(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	if !objects.WaitForCacheSync(ctx) || !informer.HasSynced() {
		log.Fatal("not synced")
	}
	fmt.Println("synced")
	select {}
}
