// sample is the workload of the tests: one small program that behaves, or
// misbehaves in the way its arguments ask for.
//
//	sample                answer HTTP on :8080; /ready and /live too
//	sample slow 20        the same, but /ready fails for the first 20 s
//	sample unready        the same, but /ready never succeeds
//	sample unhealthy 5    the same, but /live fails after 5 s
//	sample crash [2]      end with status 1 after so many seconds (1)
//	sample exit 3         end with that status at once
//	sample oom            take memory until the limit is hit
//	sample need NAME      end with status 2 unless the environment has NAME; else serve
//	sample get URL        print what URL answers; status 1 if it is not 200
//	sample registry [N]   play an image registry on port N (5000), one that has
//	                      nothing: /missing/... is not found, /private/...
//	                      unauthorized, /broken/... fails with 503
//	sample deny WORDS     play an admission webhook on :8443 that denies
//	                      everything, in these words, by TLS with the pair of
//	                      files in /certs (tls.crt and tls.key)
//
// SAMPLE_VERSION, set by each image, is in every answer.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var started = time.Now()

func main() {
	log.SetPrefix("sample " + os.Getenv("SAMPLE_VERSION") + ": ")
	always := func() bool { return true }
	ready, live := always, always
	switch argument(1) {
	case "", "serve":
	case "slow":
		ready = func() bool { return time.Since(started) >= seconds(30) }
	case "unready":
		ready = func() bool { return false }
	case "unhealthy":
		live = func() bool { return time.Since(started) < seconds(5) }
	case "crash":
		time.Sleep(seconds(1))
		log.Fatal("crashing on purpose")
	case "exit":
		status, _ := strconv.Atoi(argument(2))
		log.Printf("ending with status %d on purpose", status)
		os.Exit(status)
	case "oom":
		takeMemory()
	case "need":
		if os.Getenv(argument(2)) == "" {
			log.Printf("%s is not set", argument(2))
			os.Exit(2)
		}
	case "get":
		get(argument(2))
		return
	case "registry":
		port := argument(2)
		if port == "" {
			port = "5000"
		}
		log.Fatal(http.ListenAndServe(":"+port, http.HandlerFunc(registry)))
	case "deny":
		http.HandleFunc("/", deny(argument(2)))
		log.Fatal(http.ListenAndServeTLS(":8443", "/certs/tls.crt", "/certs/tls.key", nil))
	default:
		log.Fatalf("unknown argument %q", argument(1))
	}
	serve(ready, live)
}

func argument(i int) string {
	if i < len(os.Args) {
		return os.Args[i]
	}
	return ""
}

func seconds(otherwise int) time.Duration {
	n, err := strconv.Atoi(argument(2))
	if err != nil {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

func serve(ready, live func() bool) {
	check := func(ok func() bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if !ok() {
				http.Error(w, "no", http.StatusServiceUnavailable)
			}
		}
	}
	http.HandleFunc("/ready", check(ready))
	http.HandleFunc("/live", check(live))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "sample %s on %s\n", os.Getenv("SAMPLE_VERSION"), host)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func takeMemory() {
	var held [][]byte
	for {
		block := make([]byte, 4<<20)
		for i := range block {
			block[i] = 1
		}
		held = append(held, block)
		log.Printf("%d MiB", 4*len(held))
		time.Sleep(10 * time.Millisecond)
	}
}

func get(url string) {
	answer, err := http.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		log.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status)
	}
}

func registry(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	log.Print(r.Method, " ", r.URL.Path)
	switch name := strings.TrimPrefix(r.URL.Path, "/v2/"); {
	case name == "":
		fmt.Fprint(w, "{}")
	case strings.HasPrefix(name, "private/"):
		w.Header().Set("WWW-Authenticate", `Basic realm="sample"`)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	case strings.HasPrefix(name, "broken/"):
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
	}
}

// deny answers every AdmissionReview with the same denial.
func deny(words string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Request struct {
				UID string `json:"uid"`
			} `json:"request"`
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		log.Print("denying ", review.Request.UID)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"apiVersion": "admission.k8s.io/v1",
			"kind":       "AdmissionReview",
			"response": map[string]any{
				"uid":     review.Request.UID,
				"allowed": false,
				"status":  map[string]any{"code": http.StatusForbidden, "message": words},
			},
		})
	}
}
