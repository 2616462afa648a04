package kube

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

const taintKey = "csi.nfs-csi.io/agent-not-ready"

// fakeNode is the node n1 of the API server.
type fakeNode struct {
	*fakeAPI
	taints  string // JSON
	reads   int
	patches int
	// race changes the taints after the next read.
	race string
}

func newFakeNode(t *testing.T, taints string) *fakeNode {
	n := &fakeNode{fakeAPI: newFakeAPI(t), taints: taints}
	before := n.Config.Handler
	n.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		refused := len(n.refuse) > 0
		n.mu.Unlock()
		switch {
		case refused || r.URL.Path != "/api/v1/nodes/n1":
			before.ServeHTTP(w, r)
		case r.Method == http.MethodGet:
			n.set(func() {
				n.reads++
				_, _ = io.WriteString(w, `{"kind":"Node","spec":{"podCIDR":"10.0.0.0/24","taints":`+n.taints+`}}`)
				if n.race != "" {
					n.taints, n.race = n.race, ""
				}
			})
		case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/json-patch+json":
			n.set(func() { n.patch(w, r) })
		default:
			n.status(w, http.StatusBadRequest, r.Method+" "+r.Header.Get("Content-Type"))
		}
	})
	return n
}

// patch applies a JSON patch (RFC 6902) of the operations that are expected.
func (n *fakeNode) patch(w http.ResponseWriter, r *http.Request) {
	n.patches++
	var operations []struct {
		Op, Path string
		Value    json.RawMessage
	}
	if err := json.NewDecoder(r.Body).Decode(&operations); err != nil {
		n.t.Errorf("the patch cannot be read: %v", err)
	}
	for _, o := range operations {
		switch {
		case o.Op == "test" && o.Path == "/spec/taints":
			if !reflect.DeepEqual(parse(n.t, n.taints), parse(n.t, string(o.Value))) {
				n.status(w, http.StatusUnprocessableEntity, "testing path /spec/taints failed")
				return
			}
		case o.Op == "replace" && o.Path == "/spec/taints":
			n.taints = string(o.Value)
		default:
			n.t.Errorf("unexpected operation %+v", o)
		}
	}
	_, _ = io.WriteString(w, `{"kind":"Node"}`)
}

func parse(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func (n *fakeNode) wantTaints(t *testing.T, what, want string) {
	t.Helper()
	waitFor(t, what, func() (bool, any) {
		n.mu.Lock()
		defer n.mu.Unlock()
		return reflect.DeepEqual(parse(t, n.taints), parse(t, want)), n.taints
	})
}

func TestRemoveTaint(t *testing.T) {
	const (
		ours   = `{"key":"` + taintKey + `","effect":"NoExecute"}`
		again  = `{"key":"` + taintKey + `","value":"x","effect":"NoSchedule"}`
		other  = `{"key":"node.kubernetes.io/not-ready","effect":"NoExecute","timeAdded":"2026-01-02T03:04:05Z"}`
		future = `{"key":"a","effect":"NoSchedule","fieldOfTomorrow":{"b":[1,2]}}`
	)
	for _, tt := range []struct {
		name, taints, race, want string
		patches                  int
	}{
		{"none at all", `null`, "", `null`, 0},
		{"others only", `[` + other + `]`, "", `[` + other + `]`, 0},
		{"ours only", `[` + ours + `]`, "", `[]`, 1},
		{"ours twice, between others", `[` + other + `,` + ours + `,` + future + `,` + again + `]`, "", `[` + other + `,` + future + `]`, 1},
		{"somebody adds one meanwhile", `[` + ours + `]`, `[` + ours + `,` + other + `]`, `[` + other + `]`, 2},
		{"somebody removes it meanwhile", `[` + ours + `]`, `[` + other + `]`, `[` + other + `]`, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newFakeNode(t, tt.taints)
			node.race = tt.race
			ready := make(chan struct{})
			logs := start(t, func(ctx context.Context) { node.client().RemoveTaint(ctx, "n1", taintKey, ready) })
			ready <- struct{}{}
			ready <- struct{}{} // taken only when the first is done with
			node.wantTaints(t, "the taints", tt.want)
			node.mu.Lock()
			defer node.mu.Unlock()
			if node.patches != tt.patches {
				t.Errorf("%d patches, want %d", node.patches, tt.patches)
			}
			changed := tt.want != tt.taints && !strings.Contains(tt.name, "removes it")
			if got := strings.Contains(logs.String(), "Removed the start-up taint"); got != changed {
				t.Errorf("the log says that it was removed: %v; it is\n%s", got, logs)
			}
		})
	}
}

// The taint waits for the driver, comes back with a node that is made anew, and
// lasting failures are logged once.
func TestRemoveTaintInTime(t *testing.T) {
	const taints = `[{"key":"` + taintKey + `","effect":"NoExecute"}]`
	node := newFakeNode(t, taints)
	node.refuse["/"] = http.StatusForbidden
	ready := make(chan struct{}, 1)
	logs := start(t, func(ctx context.Context) { node.client().RemoveTaint(ctx, "n1", taintKey, ready) })
	ready <- struct{}{}
	waitFor(t, "the refusal is logged", func() (bool, any) {
		return strings.Contains(logs.String(), "let this service account get and patch nodes"), logs
	})
	node.set(func() { delete(node.refuse, "/") })
	node.wantTaints(t, "removed when it is allowed", `[]`)
	waitFor(t, "the log says so", func() (bool, any) {
		return strings.Contains(logs.String(), "Cannot remove the start-up taint: over"), logs
	})
	if n := strings.Count(logs.String(), "trying again"); n != 1 {
		t.Errorf("the failure is logged %d times:\n%s", n, logs)
	}

	node.set(func() { node.taints = taints })
	ready <- struct{}{}
	node.wantTaints(t, "removed again", `[]`)
	node.mu.Lock()
	defer node.mu.Unlock()
	if node.reads != 2 {
		t.Errorf("the node was read %d times; it is asked for only when the driver was registered", node.reads)
	}
}
