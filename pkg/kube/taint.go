package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"k8s.io/klog/v2"
)

// RemoveTaint takes the taint with the key off the node each time that ready has
// an element, until ctx ends. Where that fails, it tries again for ever, and logs
// to the logger of ctx now and then what it needs.
func (c *Client) RemoveTaint(ctx context.Context, node, key string, ready <-chan struct{}) {
	logger := klog.FromContext(ctx).WithValues("node", node, "taint", key)
	for {
		select {
		case <-ready:
		case <-ctx.Done():
			return
		}
		t := trouble{logger: logger, message: "Cannot remove the start-up taint",
			rights: "let this service account get and patch nodes, or remove the taint by hand"}
		for failures := 1; ctx.Err() == nil; failures++ {
			removed, err := c.removeTaint(ctx, node, key)
			if err == nil {
				t.over()
				if removed {
					logger.Info("Removed the start-up taint")
				}
				break
			}
			if ctx.Err() == nil {
				t.failed(err)
				c.pause(ctx, failures)
			}
		}
	}
}

// removeTaint removes the taints with the key, whatever their value and effect,
// and reports whether there were any.
func (c *Client) removeTaint(ctx context.Context, name, key string) (removed bool, err error) {
	path := "api/v1/nodes/" + url.PathEscape(name)
	var node struct {
		Spec struct {
			// What is not ours is given back byte by byte.
			Taints []json.RawMessage `json:"taints"`
		} `json:"spec"`
	}
	if err := c.get(ctx, path, nil, &node); err != nil {
		return false, err
	}
	keep := []json.RawMessage{}
	for _, raw := range node.Spec.Taints {
		var taint struct {
			Key string `json:"key"`
		}
		if err := json.Unmarshal(raw, &taint); err != nil {
			return false, fmt.Errorf("read the taints of node %s: %w", name, err)
		}
		if taint.Key != key {
			keep = append(keep, raw)
		}
	}
	if len(keep) == len(node.Spec.Taints) {
		return false, nil
	}
	// The test makes the patch fail when somebody changed the taints meanwhile.
	patch, err := json.Marshal([]struct {
		Op    string            `json:"op"`
		Path  string            `json:"path"`
		Value []json.RawMessage `json:"value"`
	}{{"test", "/spec/taints", node.Spec.Taints}, {"replace", "/spec/taints", keep}})
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := c.request(ctx, http.MethodPatch, path, nil, patch)
	if err != nil {
		return false, fmt.Errorf("patch the taints: %w", err)
	}
	return true, resp.Body.Close()
}
