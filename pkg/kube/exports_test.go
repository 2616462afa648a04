package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// told is what the watch has told last, and how often.
type told struct {
	mu               sync.Mutex
	classes, volumes []string
	times            int
}

func (w *told) tell(to *[]string) func([]nfs.Export) {
	return func(exports []nfs.Export) {
		w.mu.Lock()
		defer w.mu.Unlock()
		*to = nil
		for _, e := range exports {
			*to = append(*to, strings.ReplaceAll(strings.TrimSpace(e.Key()), " ", "_"))
		}
		w.times++
	}
}

func (w *told) get() (classes, volumes []string, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.classes, w.volumes, w.times
}

// want waits until the exports are these: "a:/x" or "a:/x_options" for each.
func (w *told) want(t *testing.T, what string, classes, volumes string) {
	t.Helper()
	waitFor(t, what, func() (bool, any) {
		c, v, _ := w.get()
		return slices.Equal(c, strings.Fields(classes)) && slices.Equal(v, strings.Fields(volumes)), fmt.Sprint(c, v)
	})
}

// watchExports starts a watch whose classes have their export in the parameter
// "export" and whose handles are exports.
func watchExports(t *testing.T, c *Client) (*told, *logBuffer) {
	t.Helper()
	w := &told{}
	logs := start(t, func(ctx context.Context) {
		c.WatchExports(ctx, Exports{
			DriverName: "ours",
			OfClass: func(parameters map[string]string, mountOptions []string) (nfs.Export, error) {
				e, err := nfs.ParseExport(parameters["export"])
				if err != nil {
					return e, err
				}
				return nfs.NewExport(e.Server, e.Share, mountOptions)
			},
			OfVolume: nfs.ParseExport,
			Classes:  w.tell(&w.classes),
			Volumes:  w.tell(&w.volumes),
		})
	})
	return w, logs
}

func class(provisioner, export string) string {
	return fmt.Sprintf(`{"provisioner":%q,"parameters":{"export":%q}}`, provisioner, export)
}

func volume(driver, handle string) string {
	return fmt.Sprintf(`{"spec":{"csi":{"driver":%q,"volumeHandle":%q}}}`, driver, handle)
}

func TestWatchExports(t *testing.T) {
	api := newFakeAPI(t)
	api.pageSize = 2
	api.put(classesPath, "one", class("ours", "a:/one"))
	api.put(classesPath, "foreign", class("theirs", "x:/x"))
	api.put(classesPath, "garbage", class("ours", "no export"))
	api.put(classesPath, "options", `{"provisioner":"ours","parameters":{"export":"a:/two"},"mountOptions":["hard","nfsvers=4.1"]}`)
	api.put(classesPath, "same", class("ours", "a:/one"))
	for i := range 5 {
		api.put(volumesPath, fmt.Sprint("many-", i), volume("ours", "b:/v"))
	}
	api.put(volumesPath, "foreign", volume("theirs", "x:/x"))
	api.put(volumesPath, "garbage", volume("ours", "written by hand"))
	api.put(volumesPath, "none", `{"spec":{"hostPath":{"path":"/x"}}}`)
	w, logs := watchExports(t, api.client())
	const two = "a:/two_nfsvers=4.1"
	w.want(t, "what the lists hold", "a:/one "+two, "b:/v")
	if log := logs.String(); !strings.Contains(log, `storageClass="garbage"`) || strings.Contains(log, "foreign") {
		t.Errorf("the log tells not of the class that cannot be read, or of a foreign one:\n%s", log)
	}

	api.put(classesPath, "three", class("ours", "a:/three"))
	w.want(t, "a new class", "a:/one a:/three "+two, "b:/v")
	api.delete(classesPath, "same")
	api.put(classesPath, "three", class("ours", "a:/0"))
	w.want(t, "a class made anew with another export, and one of two that name the same", "a:/0 a:/one "+two, "b:/v")
	api.delete(classesPath, "one")
	api.put(classesPath, "options", class("theirs", "a:/two"))
	w.want(t, "a deleted class and one that is ours no more", "a:/0", "b:/v")

	_, _, before := w.get()
	for i := range 4 {
		api.delete(volumesPath, fmt.Sprint("many-", i))
	}
	api.put(volumesPath, "many-4", volume("ours", "b:/v"))
	api.put(volumesPath, "other", volume("ours", "b:/w"))
	w.want(t, "a volume on another export", "a:/0", "b:/v b:/w")
	if _, _, now := w.get(); now != before+1 {
		t.Errorf("told %d times of one change", now-before)
	}
	api.delete(volumesPath, "many-4")
	api.delete(volumesPath, "other")
	w.want(t, "the last volumes", "a:/0", "")
}

// The watch survives all that API servers do to one.
func TestWatchGoesOn(t *testing.T) {
	lists := func(api *fakeAPI) int {
		api.mu.Lock()
		defer api.mu.Unlock()
		return api.lists[classesPath]
	}
	for _, tt := range []struct {
		name string
		// disturb happens between two changes.
		disturb func(*fakeAPI)
		relist  bool
		log     string
	}{
		{"nothing", func(*fakeAPI) {}, false, ""},
		{"the version is gone", func(a *fakeAPI) {
			a.set(func() { a.oldest = 1000; a.version = 999 })
			a.endWatches()
		}, true, ""},
		{"connections break", func(a *fakeAPI) { a.CloseClientConnections() }, true, "Cannot learn exports from StorageClasses"},
		{"the server is not ready", func(a *fakeAPI) {
			a.set(func() { a.refuse["/"] = http.StatusServiceUnavailable })
			a.endWatches()
			waitFor(t, "the watch is refused", func() (bool, any) {
				a.mu.Lock()
				defer a.mu.Unlock()
				return a.refused[classesPath] > 0, fmt.Sprint(a.watches)
			})
			a.set(func() { delete(a.refuse, "/") })
		}, true, "the API server answers 503: as the test says"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := newFakeAPI(t)
			api.put(classesPath, "one", class("ours", "a:/one"))
			w, logs := watchExports(t, api.client())
			w.want(t, "the list", "a:/one", "")
			waitFor(t, "the watches begin", func() (bool, any) {
				api.mu.Lock()
				defer api.mu.Unlock()
				return api.watches[classesPath] == 1 && api.watches[volumesPath] == 1, fmt.Sprint(api.watches)
			})
			tt.disturb(api)
			api.delete(classesPath, "one")
			api.put(classesPath, "two", class("ours", "a:/two"))
			w.want(t, "after it", "a:/two", "")
			if n := lists(api); (n > 1) != tt.relist {
				t.Errorf("listed %d times", n)
			}
			if log := logs.String(); !strings.Contains(log, tt.log) || tt.log == "" && log != "" {
				t.Errorf("the log is\n%swithout %q", log, tt.log)
			}
		})
	}
}

// Without the right to list or watch the one kind, the other is followed; the
// log says once what is missing, and when it is there.
func TestWatchWithoutRights(t *testing.T) {
	for _, refused := range []string{classesPath, classesPath + "?allowWatchBookmarks"} {
		t.Run(refused, func(t *testing.T) {
			api := newFakeAPI(t)
			api.put(classesPath, "one", class("ours", "a:/one"))
			api.put(volumesPath, "one", volume("ours", "b:/v"))
			api.refuse[refused] = http.StatusForbidden
			w, logs := watchExports(t, api.client())
			waitFor(t, "volumes are known and classes tried often", func() (bool, any) {
				_, volumes, _ := w.get()
				api.mu.Lock()
				defer api.mu.Unlock()
				return api.refused[classesPath] > 5 && len(volumes) == 1, fmt.Sprint(api.refused, volumes)
			})
			if n := strings.Count(logs.String(), "\n"); n != 1 {
				t.Errorf("logged %d lines, want 1:\n%s", n, logs)
			}
			for _, want := range []string{"Cannot learn exports from StorageClasses", "403: as the test says", "list and watch storageclasses.storage.k8s.io"} {
				if !strings.Contains(logs.String(), want) {
					t.Errorf("the log does not say %q:\n%s", want, logs)
				}
			}
			api.set(func() { delete(api.refuse, refused) })
			w.want(t, "with the rights", "a:/one", "b:/v")
			waitFor(t, "the log says so", func() (bool, any) {
				return strings.Contains(logs.String(), "Cannot learn exports from StorageClasses: over"), logs
			})
		})
	}
}

// A server that ends every watch at once is not asked in an endless loop.
func TestWatchThatEndsAtOnce(t *testing.T) {
	api := newFakeAPI(t)
	c := api.client()
	c.minPause = time.Minute
	handler := api.Config.Handler
	api.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			handler.ServeHTTP(w, r)
		}
	})
	if _, err := c.watch(t.Context(), classesPath, "1", func() {}, func(object, bool) {}); err == nil || !strings.Contains(err.Error(), "ended it at once") {
		t.Errorf("watch: %v", err)
	}
}

// What is no API server's answer is an error and no crash.
func TestGarbledAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"not JSON":      "<html>",
		"half an event": `{"type":"ADDED","object":{"meta`,
		"unknown event": `{"type":"EXPLODED","object":{}}`,
		"wrong types":   `{"type":"ADDED","object":{"parameters":[1]}}`,
		"error":         `{"type":"ERROR","object":{"code":500,"message":"etcd"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			api := newFakeAPI(t)
			api.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, answer) })
			c := api.client()
			version, err := c.watch(t.Context(), classesPath, "1", func() {}, func(object, bool) {})
			if err == nil {
				t.Errorf("watch: no error, version %q", version)
			}
			if status := new(StatusError); name == "error" && (!errors.As(err, &status) || status.Code != 500 || status.Message != "etcd") {
				t.Errorf("watch: %v", err)
			}
		})
	}
}
