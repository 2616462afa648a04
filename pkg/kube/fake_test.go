package kube

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	classesPath = "/apis/storage.k8s.io/v1/storageclasses"
	volumesPath = "/api/v1/persistentvolumes"
)

// fakeAPI is an API server that lists and watches, as
// https://kubernetes.io/docs/reference/using-api/api-concepts/ describes it.
type fakeAPI struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]string // path, name: the JSON
	events   map[string][]fakeEvent       // path
	oldest   int                          // versions before it are gone
	pageSize int                          // objects in a page; 0 for all
	// refuse is the status of every request whose path and query begin with the
	// key; the longest key counts.
	refuse  map[string]int
	refused map[string]int // path: how many were
	lists   map[string]int
	watches map[string]int // those that run
	changed chan struct{}  // closed and replaced with every change
	closing chan struct{}  // closed and replaced to end the watches
}

type fakeEvent struct {
	version int
	text    string
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	f := &fakeAPI{
		t: t, version: 100, objects: map[string]map[string]string{}, events: map[string][]fakeEvent{}, refuse: map[string]int{}, refused: map[string]int{},
		lists: map[string]int{}, watches: map[string]int{}, changed: make(chan struct{}), closing: make(chan struct{}),
	}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

// client returns a client that soon tries again.
func (f *fakeAPI) client() *Client {
	f.t.Helper()
	c, err := config{server: f.URL, token: "secret"}.client()
	if err != nil {
		f.t.Fatal(err)
	}
	c.minPause, c.maxPause = time.Millisecond, 20*time.Millisecond
	f.t.Cleanup(c.Close)
	return c
}

func (f *fakeAPI) put(path, name, object string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.objects[path] == nil {
		f.objects[path] = map[string]string{}
	}
	kind := "ADDED"
	if _, had := f.objects[path][name]; had {
		kind = "MODIFIED"
	}
	f.objects[path][name] = object
	f.eventLocked(path, kind, name, object)
}

func (f *fakeAPI) delete(path, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	object := f.objects[path][name]
	delete(f.objects[path], name)
	f.eventLocked(path, "DELETED", name, object)
}

func (f *fakeAPI) eventLocked(path, kind, name, object string) {
	f.version++
	f.events[path] = append(f.events[path], fakeEvent{f.version,
		fmt.Sprintf(`{"type":%q,"object":%s}`, kind, withMetadata(object, name, f.version))})
	close(f.changed)
	f.changed = make(chan struct{})
}

func withMetadata(object, name string, version int) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"resourceVersion":"%d","managedFields":[{"manager":"x"}]},%s`, name, version, strings.TrimPrefix(object, "{"))
}

// set changes how the server answers.
func (f *fakeAPI) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// endWatches ends them as a server that restarts does.
func (f *fakeAPI) endWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.closing)
	f.closing = make(chan struct{})
}

func (f *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer secret" {
		f.status(w, http.StatusUnauthorized, "no token")
		return
	}
	f.mu.Lock()
	refusal, longest := 0, 0
	for prefix, code := range f.refuse {
		if strings.HasPrefix(r.URL.String(), prefix) && len(prefix) >= longest {
			refusal, longest = code, len(prefix)
		}
	}
	if refusal != 0 {
		f.refused[r.URL.Path]++
	}
	f.mu.Unlock()
	switch {
	case refusal != 0:
		f.status(w, refusal, "as the test says")
	case r.URL.Query().Get("watch") != "":
		f.watch(w, r)
	default:
		f.list(w, r)
	}
}

func (f *fakeAPI) status(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"kind":"Status","code":%d,"message":%q}`, code, message)
}

func (f *fakeAPI) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names, items []string
	for name := range f.objects[r.URL.Path] {
		names = append(names, name)
	}
	slices.Sort(names)
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	if from == 0 {
		f.lists[r.URL.Path]++
	}
	next := ""
	names = names[from:]
	if f.pageSize > 0 && len(names) > f.pageSize {
		names, next = names[:f.pageSize], strconv.Itoa(from+f.pageSize)
	}
	for _, name := range names {
		items = append(items, withMetadata(f.objects[r.URL.Path][name], name, f.version))
	}
	_, _ = fmt.Fprintf(w, `{"kind":"List","metadata":{"resourceVersion":"%d","continue":%q},"items":[%s]}`, f.version, next, strings.Join(items, ","))
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	f.mu.Lock()
	if err != nil || from < f.oldest {
		f.mu.Unlock()
		_, _ = fmt.Fprint(w, `{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}`)
		return
	}
	closing := f.closing
	f.mu.Unlock()
	defer f.set(func() { f.watches[path]-- })
	_ = http.NewResponseController(w).Flush()
	for first := true; ; first = false {
		f.mu.Lock()
		if first {
			f.watches[path]++
		}
		changed := f.changed
		for _, e := range f.events[path] {
			if e.version > from {
				_, _ = fmt.Fprintln(w, e.text)
				from = e.version
			}
		}
		if first || f.version > from {
			from = f.version
			_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%d"}}}`+"\n", from)
		}
		f.mu.Unlock()
		_ = http.NewResponseController(w).Flush()
		select {
		case <-changed:
			select {
			case <-closing:
				return // what came later is not for this watch
			default:
			}
		case <-closing:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs f with a logger until the test ends, and returns the log.
func start(t *testing.T, f func(context.Context)) *logBuffer {
	t.Helper()
	logs := &logBuffer{}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(logs), textlogger.Verbosity(2)))
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logger))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("does not end within 20 s of being told to")
		}
	})
	return logs
}

// waitFor waits until the condition holds; seen describes what there is instead.
func waitFor(t *testing.T, what string, condition func() (ok bool, seen any)) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, seen := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s; there is %v", what, seen)
		}
		<-ticker.C
	}
}
