package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// pageSize is how many objects are asked for at once, so that a cluster with
// many PersistentVolumes is never in memory as a whole.
const pageSize = 500

// object is what matters here of a StorageClass or a PersistentVolume, and of
// the Status that a watch gives for an error.
type object struct {
	Metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`

	Provisioner  string            `json:"provisioner"`
	Parameters   map[string]string `json:"parameters"`
	MountOptions []string          `json:"mountOptions"`

	Spec struct {
		CSI *struct {
			Driver       string `json:"driver"`
			VolumeHandle string `json:"volumeHandle"`
		} `json:"csi"`
	} `json:"spec"`

	Code    int    `json:"code"`
	Message string `json:"message"`
}

// list visits all objects at the path and returns the version of the list, from
// which a watch goes on.
func (c *Client) list(ctx context.Context, path string, visit func(object)) (version string, err error) {
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for {
		var page struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
				Continue        string `json:"continue"`
			} `json:"metadata"`
			Items []object `json:"items"`
		}
		if err := c.get(ctx, path, query, &page); err != nil {
			return "", fmt.Errorf("list: %w", err)
		}
		for _, o := range page.Items {
			visit(o)
		}
		if page.Metadata.Continue == "" {
			return page.Metadata.ResourceVersion, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

// watch visits the changes at the path since the version until the server ends
// the watch, as it does every few minutes, and returns the version it came to.
// It calls started once the server has agreed. After an error only a new list is
// of use.
func (c *Client) watch(ctx context.Context, path, version string, started func(), visit func(o object, deleted bool)) (string, error) {
	// Not all watches of all replicas at one moment.
	limit := 5*time.Minute + rand.N(5*time.Minute) //nolint:gosec // no secret
	ctx, cancel := context.WithTimeout(ctx, limit+30*time.Second)
	defer cancel()
	began := time.Now()
	resp, err := c.request(ctx, http.MethodGet, path, url.Values{
		"watch":               {"1"},
		"resourceVersion":     {version},
		"allowWatchBookmarks": {"true"},
		"timeoutSeconds":      {strconv.Itoa(int(limit.Seconds()))},
	}, nil)
	if err != nil {
		return "", fmt.Errorf("watch: %w", err)
	}
	defer resp.Body.Close()
	started()
	events := json.NewDecoder(resp.Body)
	for seen := 0; ; seen++ {
		var event struct {
			Type   string `json:"type"`
			Object object `json:"object"`
		}
		err := events.Decode(&event)
		switch {
		case errors.Is(err, io.EOF) && seen == 0 && time.Since(began) < c.minPause:
			// Going on at once would be an endless loop of requests.
			return "", errors.New("watch: the API server ended it at once")
		case errors.Is(err, io.EOF):
			return version, nil
		case err != nil:
			return "", fmt.Errorf("watch: %w", err)
		}
		switch event.Type {
		case "ADDED", "MODIFIED", "DELETED":
			visit(event.Object, event.Type == "DELETED")
		case "BOOKMARK":
		case "ERROR":
			return "", fmt.Errorf("watch: %w", &StatusError{Code: event.Object.Code, Message: event.Object.Message})
		default:
			return "", fmt.Errorf("watch: unknown event %q", event.Type)
		}
		version = event.Object.Metadata.ResourceVersion
	}
}

// pause waits before the next try: longer, the more often it failed before, and
// never as long as another process that failed at the same moment.
func (c *Client) pause(ctx context.Context, failures int) {
	pause := c.minPause
	for range failures - 1 {
		pause = min(2*pause, c.maxPause)
	}
	timer := time.NewTimer(pause/2 + rand.N(pause/2+1)) //nolint:gosec // no secret
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
