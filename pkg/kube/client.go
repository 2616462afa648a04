package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNoCluster says that this process is no pod of a cluster, and that no
// kubeconfig was given.
var ErrNoCluster = errors.New("not in a Kubernetes cluster; set --kubeconfig")

// serviceAccountDir is where the kubelet puts the credentials of a pod's account.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// Client speaks to one API server. All its methods may be called at once.
type Client struct {
	base *url.URL
	http *http.Client
	// token returns the bearer token, or "" for none. It is asked for every
	// request, since the kubelet replaces the tokens of pods.
	token func() (string, error)
	// minPause and maxPause bound the pause after a failure, which doubles with each.
	minPause, maxPause time.Duration
}

// StatusError is an answer of the API server other than success.
type StatusError struct {
	// Code is the HTTP status.
	Code int
	// Message is the server's own, or the text of the HTTP status.
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the API server answers %d: %s", e.Code, e.Message)
}

// New returns a client of the cluster that the current context of the
// kubeconfig file names, or, when that is empty, of the cluster that this
// process is a pod of. It fails with ErrNoCluster when there is neither. It
// connects to nothing.
func New(kubeconfig string) (*Client, error) {
	if kubeconfig != "" {
		c, err := readKubeconfig(kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
		}
		client, err := c.client()
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
		}
		return client, nil
	}
	return inCluster(os.Getenv, serviceAccountDir)
}

// inCluster reads what the kubelet gives every pod.
func inCluster(getenv func(string) string, dir string) (*Client, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, ErrNoCluster
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("credentials of the pod's service account: %w; set automountServiceAccountToken", err)
	}
	return config{server: "https://" + net.JoinHostPort(host, port), ca: ca, tokenFile: filepath.Join(dir, "token")}.client()
}

// config is how to reach an API server and what to show it.
type config struct {
	server     string
	serverName string // for TLS, where it differs from the host
	ca         []byte // PEM; empty for the CAs of the system
	insecure   bool
	cert, key  []byte // PEM
	token      string
	tokenFile  string // goes before token
}

func (c config) client() (*Client, error) {
	base, err := url.Parse(c.server)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("the API server's address %q is not a URL such as https://host:6443", c.server)
	}
	tlsConfig := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.serverName,
		InsecureSkipVerify: c.insecure, //nolint:gosec // only where the kubeconfig says so
	}
	if len(c.ca) > 0 {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(c.ca) {
			return nil, errors.New("the API server's CA holds no certificate")
		}
	}
	if len(c.cert) > 0 || len(c.key) > 0 {
		pair, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("the client certificate: %w", err)
		}
		tlsConfig.Certificates = []tls.Certificate{pair}
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second}
	return &Client{
		base: base,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				DialContext:         dialer.DialContext,
				TLSClientConfig:     tlsConfig,
				TLSHandshakeTimeout: 30 * time.Second,
				IdleConnTimeout:     90 * time.Second,
				ForceAttemptHTTP2:   true,
				// A watch is silent most of the time; only a ping tells that its server is gone.
				HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
			},
			// No API server redirects, and a token must not follow one.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		token: func() (string, error) {
			if c.tokenFile == "" {
				return c.token, nil
			}
			token, err := os.ReadFile(c.tokenFile)
			if err != nil {
				return "", fmt.Errorf("read the token: %w", err)
			}
			return strings.TrimSpace(string(token)), nil
		},
		minPause: time.Second,
		maxPause: time.Minute,
	}, nil
}

// Close closes the connections that no request uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request sends a request, whose body is a JSON patch if there is one, and
// returns the response with its body open. Any answer but success is a *StatusError.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, patch []byte) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(patch))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "nfs-csi-driver")
	if len(patch) > 0 {
		req.Header.Set("Content-Type", "application/json-patch+json")
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	// The body is a Status object, unless something before the API server answers.
	status := StatusError{Code: resp.StatusCode, Message: http.StatusText(resp.StatusCode)}
	var said struct {
		Message string `json:"message"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && json.Unmarshal(body, &said) == nil && said.Message != "" {
		status.Message = said.Message
	}
	return nil, &status
}

// get reads an object, or a page of a list, into v.
func (c *Client) get(ctx context.Context, path string, query url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the API server's answer: %w", err)
	}
	return nil
}
