package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// whoami answers how a request has shown who it is.
func whoami(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := r.Header.Get("Authorization")
		if len(r.TLS.PeerCertificates) > 0 {
			user = "certificate " + r.TLS.PeerCertificates[0].Subject.CommonName
		}
		_, _ = fmt.Fprintf(w, `{"user":%q,"path":%q,"protocol":%q}`, user, r.URL.Path, r.Proto)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func ask(t *testing.T, c *Client) (user, path string) {
	t.Helper()
	var answer struct{ User, Path, Protocol string }
	if err := c.get(t.Context(), "api/v1/x", nil, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Protocol != "HTTP/2.0" {
		t.Errorf("spoke %s, where only HTTP/2 notices a dead server soon", answer.Protocol)
	}
	return answer.User, answer.Path
}

func writeFile(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInCluster(t *testing.T) {
	server := whoami(t)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"KUBERNETES_SERVICE_HOST": u.Hostname(), "KUBERNETES_SERVICE_PORT": u.Port()}
	dir := t.TempDir()
	if _, err := inCluster(func(string) string { return "" }, dir); !errors.Is(err, ErrNoCluster) {
		t.Errorf("outside of a cluster: %v", err)
	}
	if _, err := inCluster(func(k string) string { return env[k] }, dir); errors.Is(err, ErrNoCluster) || !strings.Contains(fmt.Sprint(err), "automountServiceAccountToken") {
		t.Errorf("without credentials: %v", err)
	}
	writeFile(t, dir, "ca.crt", caOf(server))
	writeFile(t, dir, "token", []byte("first\n"))
	c, err := inCluster(func(k string) string { return env[k] }, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if user, path := ask(t, c); user != "Bearer first" || path != "/api/v1/x" {
		t.Errorf("asked %s as %q", path, user)
	}
	// The kubelet replaces tokens before they expire.
	writeFile(t, dir, "token", []byte("second"))
	if user, _ := ask(t, c); user != "Bearer second" {
		t.Errorf("asked as %q after the token was replaced", user)
	}
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	if err := c.get(t.Context(), "api/v1/x", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its token: %v", err)
	}
}

func caOf(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// clientCertificate returns a certificate of the user and its key, in PEM.
func clientCertificate(t *testing.T, user string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: user},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

const kubeconfigText = `
apiVersion: v1
kind: Config
current-context: %s
contexts:
- {name: good, context: {cluster: here, user: me, namespace: x}}
- {name: prefixed, context: {cluster: prefixed, user: me}}
- {name: no-user, context: {cluster: here, user: nobody}}
- {name: no-cluster, context: {cluster: nowhere, user: me}}
clusters:
- name: prefixed
  cluster: {server: "%[2]s/k8s/clusters/c-1", certificate-authority: ca.crt}
- name: here
  cluster: {server: %[2]s, %[3]s}
users:
- name: me
  user: {%[4]s}
`

func TestKubeconfig(t *testing.T) {
	server := whoami(t)
	cert, key := clientCertificate(t, "admin")
	data := base64.StdEncoding.EncodeToString
	const ca = "certificate-authority: ca.crt"
	caData := "certificate-authority-data: " + data(caOf(server))
	for _, tt := range []struct {
		name, context, cluster, user string
		want                         string // the user, or with an error a part of it
		fails                        bool
	}{
		{"token", "good", caData, "token: abc", "Bearer abc", false},
		{"file with a token, which goes first", "good", ca, "token: abc, tokenFile: token", "Bearer from file", false},
		{"certificate", "good", ca, "client-certificate-data: " + data(cert) + ", client-key-data: " + data(key), "certificate admin", false},
		{"files with a certificate", "good", ca, "client-certificate: user.crt, client-key: user.key", "certificate admin", false},
		{"no check", "good", "insecure-skip-tls-verify: true", "token: abc", "Bearer abc", false},
		{"name for TLS", "good", ca + ", tls-server-name: example.com", "token: abc", "Bearer abc", false},
		{"address with a path", "prefixed", ca, "token: abc", "Bearer abc", false},

		{"no such context", "other", ca, "token: abc", `no current context "other"`, true},
		{"no such user", "no-user", ca, "token: abc", `no user "nobody"`, true},
		{"no such cluster", "no-cluster", ca, "token: abc", `no cluster "nowhere"`, true},
		{"program", "good", ca, "exec: {command: aws}", "not supported; use a client certificate", true},
		{"impersonation", "good", ca, "token: abc, as: root", "not supported", true},
		{"proxy", "good", ca + ", proxy-url: http://x", "token: abc", "set HTTPS_PROXY", true},
		{"CA that is none", "good", "certificate-authority-data: " + data([]byte("x")), "token: abc", "holds no certificate", true},
		{"CA that is not there", "good", "certificate-authority: none.crt", "token: abc", "certificate-authority: open ", true},
		{"data that is not base64", "good", ca, "client-key-data: '*'", "client-key: illegal base64", true},
		{"certificate without its key", "good", ca, "client-certificate-data: " + data(cert), "the client certificate: ", true},
		{"no YAML", "good\n\t", ca, "token: abc", "yaml: ", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, dir, "ca.crt", caOf(server))
			writeFile(t, dir, "token", []byte("from file"))
			writeFile(t, dir, "user.crt", cert)
			writeFile(t, dir, "user.key", key)
			writeFile(t, dir, "config", fmt.Appendf(nil, kubeconfigText, tt.context, server.URL, tt.cluster, tt.user))
			c, err := New(filepath.Join(dir, "config"))
			if tt.fails {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
					t.Errorf("got the error %v, want one with %q and the file", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			user, path := ask(t, c)
			if user != tt.want {
				t.Errorf("asked as %q, want %q", user, tt.want)
			}
			if (path == "/k8s/clusters/c-1/api/v1/x") != (tt.context == "prefixed") {
				t.Errorf("asked for %s", path)
			}
		})
	}
	if _, err := New(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: %v", err)
	}
	for _, server := range []string{"", "host:6443", "ftp://host", ":"} {
		if _, err := (config{server: server}).client(); err == nil || !strings.Contains(err.Error(), "is not a URL such as https://host:6443") {
			t.Errorf("server %q: %v", server, err)
		}
	}
}

// A token goes to the API server only.
func TestRedirectsAreNotFollowed(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s with %q", r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(other.Close)
	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	t.Cleanup(server.Close)
	c, err := config{server: server.URL, token: "secret"}.client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	err = c.get(t.Context(), "api", nil, nil)
	if status := new(StatusError); !errors.As(err, &status) || status.Code != http.StatusFound || status.Message != "Found" {
		t.Errorf("got %v", err)
	}
}
