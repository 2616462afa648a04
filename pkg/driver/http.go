package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Build says which build of the driver this is.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
}

// Check is one condition of readiness: nil, or why the process is not ready.
type Check struct {
	Name  string
	Check func() error
}

// ServerCheck is ready while the server takes CSI calls.
func (s *Server) ServerCheck() Check {
	return Check{Name: "csi", Check: func() error {
		if !s.Serving() {
			return errors.New("the CSI services are not served")
		}
		return nil
	}}
}

// NewRegistry returns a registry with the metrics of the CSI calls, of the
// process and of the Go runtime, nfs_csi_build_info, and those given.
func (s *Server) NewRegistry(build Build, more ...prometheus.Collector) (*prometheus.Registry, error) {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "nfs_csi_build_info",
		Help:        "1, labelled with the version, commit and Go version of the driver.",
		ConstLabels: prometheus.Labels{"version": build.Version, "commit": build.Commit, "go_version": runtime.Version()},
	})
	info.Set(1)
	registry := prometheus.NewRegistry()
	for _, c := range append([]prometheus.Collector{
		s.metrics,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info,
	}, more...) {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return registry, nil
}

// NewHTTPHandler serves /healthz, which answers as long as the process can
// answer, /readyz, which is 503 with the reasons while a check fails, and
// /metrics. None of them asks an NFS server.
func NewHTTPHandler(metrics prometheus.Gatherer, checks ...Check) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		code, body := http.StatusOK, ""
		for _, c := range checks {
			if err := c.Check(); err != nil {
				code = http.StatusServiceUnavailable
				body += fmt.Sprintf("%s: %v\n", c.Name, err)
			} else {
				body += c.Name + ": ok\n"
			}
		}
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, body)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

// ServeHTTP serves the handler on the listener until ctx ends.
func ServeHTTP(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		_ = server.Close()
	}
	<-served
	return nil
}
