package chart_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	chart "github.com/nfs-csi/nfs-csi-driver/test/chart"
)

// Values that are wrong are refused in words that name the value and say what
// is wrong with it.
func TestWrongValues(t *testing.T) {
	for _, tt := range []struct{ name, values, want string }{
		{"unknown value", "replicas: 2", "additional properties 'replicas' not allowed"},
		{"unknown value below another", "controller: {replica: 2}", "at '/controller': additional properties 'replica' not allowed"},
		{"text for a number", `controller: {replicas: "2"}`, "at '/controller/replicas': got string, want integer"},
		{"negative number", "controller: {replicas: -1}", "at '/controller/replicas': minimum: got -1, want 0"},
		{"port out of range", "node: {httpPort: 65536}", "at '/node/httpPort': maximum: got 65,536, want 65,535"},
		{"text for a truth value", `metrics: {enabled: "yes"}`, "at '/metrics/enabled': got string, want boolean"},
		{"relative kubelet directory", "kubeletDir: var/lib/kubelet", "at '/kubeletDir': 'var/lib/kubelet' does not match pattern"},
		{"kubelet directory with a slash behind", "kubeletDir: /var/lib/kubelet/", "at '/kubeletDir': '/var/lib/kubelet/' does not match pattern"},
		{"capitals in the driver's name", "driverName: NFS.example.com", "at '/driverName': 'NFS.example.com' does not match pattern"},
		{"no driver's name", `driverName: ""`, "at '/driverName': '' does not match pattern"},
		{"driver's name taken away", "driverName: null", "missing property 'driverName'"},
		{"duration without a unit", "operationTimeout: 30", "at '/operationTimeout': got number, want string"},
		{"duration in words", "operationTimeout: soon", "at '/operationTimeout': 'soon' does not match pattern"},
		{"unknown log format", "log: {format: yaml}", "at '/log/format': value must be one of 'text', 'json'"},
		{"unknown policy", "csiDriver: {fsGroupPolicy: file}", "at '/csiDriver/fsGroupPolicy': value must be one of 'File', 'None', 'ReadWriteOnceWithFSType'"},
		{"unknown pull policy", "image: {pullPolicy: Sometimes}", "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"},
		{"short digest", "image: {digest: 'sha256:12'}", "at '/image/digest': 'sha256:12' does not match pattern"},
		{"tag in the repository", "image: {repository: 'nfs-csi-driver:v1'}", "at '/image/repository': 'nfs-csi-driver:v1' does not match pattern"},
		{"one value for a list", "exports: nfs:/share", "at '/exports': got string, want array"},
		{"export without a share", "exports: [nfs.example.com]", "at '/exports/0': 'nfs.example.com' does not match pattern"},
		{"environment as a map", "controller: {extraEnv: {A: b}}", "at '/controller/extraEnv': got object, want array"},
		{"environment with a number", "controller: {extraEnv: [{name: A, value: 1}]}", "at '/controller/extraEnv/0/value': got number, want string"},
		{"misspelt resources", "node: {resources: {limit: {memory: 1Gi}}}", "at '/node/resources': additional properties 'limit' not allowed"},
		{"taint with its effect", "node: {startupTaint: 'a.example.com/b:NoExecute'}", "at '/node/startupTaint': 'a.example.com/b:NoExecute' does not match pattern"},
		{"a share of nodes above all", "node: {maxUnavailable: 110%}", "at '/node/maxUnavailable'"},
		{"label with a number", "commonLabels: {team: 1}", "at '/commonLabels/team': got number, want string"},
		{"class without a server", "storageClasses: [{name: nfs, share: /a}]", "at '/storageClasses/0': missing property 'server'"},
		{"class without a share", "storageClasses: [{name: nfs, server: a}]", "at '/storageClasses/0': missing property 'share'"},
		{"class with a relative share", "storageClasses: [{name: nfs, server: a, share: b}]", "at '/storageClasses/0/share': 'b' does not match pattern"},
		{"class with capitals", "storageClasses: [{name: NFS, server: a, share: /b}]", "at '/storageClasses/0/name': 'NFS' does not match pattern"},
		{"misspelt parameter", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {subdirectory: c}}]", "at '/storageClasses/0/parameters': additional properties 'subdirectory' not allowed"},
		{"unknown onDelete", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {onDelete: keep}}]", "at '/storageClasses/0/parameters/onDelete': value must be one of 'delete', 'retain', 'archive'"},
		{"mode that YAML takes for a number", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {mountPermissions: 0770}}]", "at '/storageClasses/0/parameters/mountPermissions': got number, want string"},
		{"mode that is not octal", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {mountPermissions: '0888'}}]", "at '/storageClasses/0/parameters/mountPermissions': '0888' does not match pattern"},
		{"user by name", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {uid: root}}]", "at '/storageClasses/0/parameters/uid'"},
		{"user id that is none", "storageClasses: [{name: nfs, server: a, share: /b, parameters: {uid: 4294967295}}]", "at '/storageClasses/0/parameters/uid'"},
		{"mount options in one text", "storageClasses: [{name: nfs, server: a, share: /b, mountOptions: 'ro,soft'}]", "at '/storageClasses/0/mountOptions': got string, want array"},
		{"expansion in words", "storageClasses: [{name: nfs, server: a, share: /b, allowVolumeExpansion: 'yes'}]", "at '/storageClasses/0/allowVolumeExpansion': got string, want boolean"},
		{"unknown reclaim policy", "storageClasses: [{name: nfs, server: a, share: /b, reclaimPolicy: Recycle}]", "at '/storageClasses/0/reclaimPolicy': value must be one of 'Delete', 'Retain'"},

		{"socket path too long", "{kubeletDir: /var/snap/microk8s/common/var/lib/kubelet, driverName: a-name-that-is-long-on-purpose.storage.nfs.example.com}", "kubeletDir and driverName are too long together"},
		{"two containers on one port", "controller: {httpPort: 8081}", "controller.httpPort and controller.provisioner.httpPort are both 8081"},
		{"snapshots on the port of the resizer", "controller: {snapshotter: {httpPort: 8082}}", "controller.resizer.httpPort and controller.snapshotter.httpPort are both 8082"},
		{"two sidecars on one port", "controller: {resizer: {httpPort: 8081}}", "controller.provisioner.httpPort and controller.resizer.httpPort are both 8081"},
		{"monitor of what nobody can reach", "metrics: {podMonitor: {enabled: true}}", "metrics.podMonitor.enabled needs metrics.enabled"},
		{"two classes of one name", "storageClasses: [{name: nfs, server: a, share: /b}, {name: nfs, server: a, share: /c}]", `storageClasses holds the name "nfs" twice`},
		{"two default classes", "storageClasses: [{name: one, server: a, share: /b, default: true}, {name: two, server: a, share: /c, default: true}]", `storageClasses "one" and "two" both have default: true`},
		{"image without tag and digest", `controller: {provisioner: {image: {tag: ""}}}`, "the image registry.k8s.io/sig-storage/csi-provisioner needs a tag or a digest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rendered, err := tryRender(t, tt.values)
			if err == nil {
				t.Fatalf("accepted; it rendered\n%s", chart.Manifests(rendered))
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got the error\n%v\nwithout %q", err, tt.want)
			}
		})
	}
}

// A chart that has this one as a part hands it "global".
func TestGlobalValuesAreAccepted(t *testing.T) {
	if _, err := tryRender(t, "global: {imageRegistry: a}"); err != nil {
		t.Error(err)
	}
}

// Each value of values.yaml has a change to it here that must show in what the
// chart renders: no value is without effect, and none is forgotten.
func TestEveryValueHasAnEffect(t *testing.T) {
	const class = "storageClasses: [{name: nfs, server: a, share: /b}]"
	changes := map[string]string{
		"nameOverride":                     "nameOverride: x",
		"fullnameOverride":                 "fullnameOverride: x",
		"commonLabels":                     "commonLabels: {a: b}",
		"imagePullSecrets":                 "imagePullSecrets: [{name: x}]",
		"driverName":                       "driverName: x",
		"instanceID":                       "instanceID: x",
		"exports":                          "exports: [a:/b]",
		"kubeletDir":                       "kubeletDir: /x",
		"operationTimeout":                 "operationTimeout: 1s",
		"workerIdleTimeout":                "workerIdleTimeout: 1s",
		"image.registry":                   `image: {registry: ""}`,
		"image.repository":                 "image: {repository: x}",
		"image.tag":                        "image: {tag: x}",
		"image.digest":                     "image: {digest: 'sha256:" + strings.Repeat("0", 64) + "'}",
		"image.pullPolicy":                 "image: {pullPolicy: Never}",
		"log.level":                        "log: {level: 5}",
		"log.format":                       "log: {format: json}",
		"csiDriver.fsGroupPolicy":          "csiDriver: {fsGroupPolicy: None}",
		"storageClasses":                   class,
		"controller.replicas":              "controller: {replicas: 1}",
		"controller.httpPort":              "controller: {httpPort: 1}",
		"controller.purge.rate":            "controller: {purge: {rate: 1}}",
		"controller.purge.concurrency":     "controller: {purge: {concurrency: 1}}",
		"controller.extraArgs":             "controller: {extraArgs: [x]}",
		"controller.extraEnv":              "controller: {extraEnv: [{name: x}]}",
		"controller.resources":             "controller: {resources: {limits: {cpu: 1}}}",
		"controller.appArmorProfile":       "controller: {appArmorProfile: {type: RuntimeDefault}}",
		"controller.seLinuxOptions":        "controller: {seLinuxOptions: {type: x}}",
		"controller.priorityClassName":     "controller: {priorityClassName: x}",
		"controller.nodeSelector":          "controller: {nodeSelector: {x: z}}",
		"controller.tolerations":           "controller: {tolerations: []}",
		"controller.affinity":              "controller: {affinity: {nodeAffinity: {}}}",
		"controller.dnsPolicy":             "controller: {dnsPolicy: Default}",
		"controller.dnsConfig":             "controller: {dnsConfig: {searches: [x]}}",
		"controller.podAnnotations":        "controller: {podAnnotations: {x: z}}",
		"controller.podLabels":             "controller: {podLabels: {x: z}}",
		"controller.serviceAccount.create": "controller: {serviceAccount: {create: false}}",
		"controller.serviceAccount.name":   "controller: {serviceAccount: {name: x}}",

		"controller.topologySpreadConstraints":          "controller: {topologySpreadConstraints: [{maxSkew: 1}]}",
		"controller.terminationGracePeriodSeconds":      "controller: {terminationGracePeriodSeconds: 1}",
		"controller.serviceAccount.annotations":         "controller: {serviceAccount: {annotations: {x: z}}}",
		"controller.podDisruptionBudget.enabled":        "controller: {podDisruptionBudget: {enabled: false}}",
		"controller.podDisruptionBudget.maxUnavailable": "controller: {podDisruptionBudget: {maxUnavailable: 50%}}",

		"controller.provisioner.image.registry":   `controller: {provisioner: {image: {registry: ""}}}`,
		"controller.provisioner.image.repository": "controller: {provisioner: {image: {repository: x}}}",
		"controller.provisioner.image.tag":        "controller: {provisioner: {image: {tag: x}}}",
		"controller.provisioner.image.digest":     "controller: {provisioner: {image: {digest: 'sha256:" + strings.Repeat("0", 64) + "'}}}",
		"controller.provisioner.image.pullPolicy": "controller: {provisioner: {image: {pullPolicy: Never}}}",
		"controller.provisioner.httpPort":         "controller: {provisioner: {httpPort: 1}}",
		"controller.provisioner.timeout":          "controller: {provisioner: {timeout: 1s}}",
		"controller.provisioner.retryIntervalMax": "controller: {provisioner: {retryIntervalMax: 1s}}",
		"controller.provisioner.workerThreads":    "controller: {provisioner: {workerThreads: 1}}",
		"controller.provisioner.kubeAPIQPS":       "controller: {provisioner: {kubeAPIQPS: 1}}",
		"controller.provisioner.kubeAPIBurst":     "controller: {provisioner: {kubeAPIBurst: 1}}",
		"controller.provisioner.extraArgs":        "controller: {provisioner: {extraArgs: [x]}}",
		"controller.provisioner.extraEnv":         "controller: {provisioner: {extraEnv: [{name: x}]}}",
		"controller.provisioner.resources":        "controller: {provisioner: {resources: {limits: {cpu: 1}}}}",

		"controller.resizer.enabled":          "controller: {resizer: {enabled: false}}",
		"controller.resizer.image.registry":   `controller: {resizer: {image: {registry: ""}}}`,
		"controller.resizer.image.repository": "controller: {resizer: {image: {repository: x}}}",
		"controller.resizer.image.tag":        "controller: {resizer: {image: {tag: x}}}",
		"controller.resizer.image.digest":     "controller: {resizer: {image: {digest: 'sha256:" + strings.Repeat("0", 64) + "'}}}",
		"controller.resizer.image.pullPolicy": "controller: {resizer: {image: {pullPolicy: Never}}}",
		"controller.resizer.httpPort":         "controller: {resizer: {httpPort: 1}}",
		"controller.resizer.timeout":          "controller: {resizer: {timeout: 1s}}",
		"controller.resizer.retryIntervalMax": "controller: {resizer: {retryIntervalMax: 1s}}",
		"controller.resizer.workers":          "controller: {resizer: {workers: 1}}",
		"controller.resizer.extraArgs":        "controller: {resizer: {extraArgs: [x]}}",
		"controller.resizer.extraEnv":         "controller: {resizer: {extraEnv: [{name: x}]}}",
		"controller.resizer.resources":        "controller: {resizer: {resources: {limits: {cpu: 1}}}}",

		"controller.snapshotter.enabled":          "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.image.registry":   `controller: {snapshotter: {enabled: true, image: {registry: ""}}}`,
		"controller.snapshotter.image.repository": "controller: {snapshotter: {enabled: true, image: {repository: x}}}",
		"controller.snapshotter.image.tag":        "controller: {snapshotter: {enabled: true, image: {tag: x}}}",
		"controller.snapshotter.image.digest":     "controller: {snapshotter: {enabled: true, image: {digest: 'sha256:" + strings.Repeat("0", 64) + "'}}}",
		"controller.snapshotter.image.pullPolicy": "controller: {snapshotter: {enabled: true, image: {pullPolicy: Never}}}",
		"controller.snapshotter.httpPort":         "controller: {snapshotter: {enabled: true, httpPort: 1}}",
		"controller.snapshotter.timeout":          "controller: {snapshotter: {enabled: true, timeout: 1s}}",
		"controller.snapshotter.retryIntervalMax": "controller: {snapshotter: {enabled: true, retryIntervalMax: 1s}}",
		"controller.snapshotter.workerThreads":    "controller: {snapshotter: {enabled: true, workerThreads: 1}}",
		"controller.snapshotter.extraArgs":        "controller: {snapshotter: {enabled: true, extraArgs: [x]}}",
		"controller.snapshotter.extraEnv":         "controller: {snapshotter: {enabled: true, extraEnv: [{name: x}]}}",
		"controller.snapshotter.resources":        "controller: {snapshotter: {enabled: true, resources: {limits: {cpu: 1}}}}",

		"node.startupTaint":                  "node: {startupTaint: x}",
		"node.httpPort":                      "node: {httpPort: 1}",
		"node.extraArgs":                     "node: {extraArgs: [x]}",
		"node.extraEnv":                      "node: {extraEnv: [{name: x}]}",
		"node.resources":                     "node: {resources: {limits: {cpu: 1}}}",
		"node.priorityClassName":             "node: {priorityClassName: x}",
		"node.nodeSelector":                  "node: {nodeSelector: {x: z}}",
		"node.tolerations":                   "node: {tolerations: []}",
		"node.affinity":                      "node: {affinity: {nodeAffinity: {}}}",
		"node.dnsPolicy":                     "node: {dnsPolicy: Default}",
		"node.dnsConfig":                     "node: {dnsConfig: {searches: [x]}}",
		"node.maxUnavailable":                "node: {maxUnavailable: 1}",
		"node.terminationGracePeriodSeconds": "node: {terminationGracePeriodSeconds: 1}",
		"node.podAnnotations":                "node: {podAnnotations: {x: z}}",
		"node.podLabels":                     "node: {podLabels: {x: z}}",
		"node.serviceAccount.create":         "node: {serviceAccount: {create: false}}",
		"node.serviceAccount.name":           "node: {serviceAccount: {name: x}}",
		"node.serviceAccount.annotations":    "node: {serviceAccount: {annotations: {x: z}}}",

		"rbac.create":                 "rbac: {create: false}",
		"metrics.enabled":             "metrics: {enabled: true}",
		"metrics.podMonitor.enabled":  "metrics: {enabled: true, podMonitor: {enabled: true}}",
		"metrics.podMonitor.labels":   "metrics: {enabled: true, podMonitor: {enabled: true, labels: {x: z}}}",
		"metrics.podMonitor.interval": "metrics: {enabled: true, podMonitor: {enabled: true, interval: 5s}}",
		"networkPolicy.enabled":       "networkPolicy: {enabled: true}",
		"networkPolicy.from":          "networkPolicy: {enabled: true, from: [{podSelector: {}}]}",
		"networkPolicy.egress":        "networkPolicy: {enabled: true, egress: [{}]}",
	}
	// Values that have an effect only where another is not the default.
	base := map[string]string{
		"metrics.podMonitor.enabled":              "metrics: {enabled: true}",
		"metrics.podMonitor.labels":               "metrics: {enabled: true, podMonitor: {enabled: true}}",
		"metrics.podMonitor.interval":             "metrics: {enabled: true, podMonitor: {enabled: true}}",
		"networkPolicy.from":                      "networkPolicy: {enabled: true}",
		"networkPolicy.egress":                    "networkPolicy: {enabled: true}",
		"controller.snapshotter.image.registry":   "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.image.repository": "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.image.tag":        "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.image.digest":     "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.image.pullPolicy": "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.httpPort":         "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.timeout":          "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.retryIntervalMax": "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.workerThreads":    "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.extraArgs":        "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.extraEnv":         "controller: {snapshotter: {enabled: true}}",
		"controller.snapshotter.resources":        "controller: {snapshotter: {enabled: true}}",
	}
	manifests := func(values string) string {
		rendered, err := tryRender(t, values)
		if err != nil {
			t.Fatalf("%s: %v", values, err)
		}
		return chart.Manifests(rendered)
	}
	values, err := chart.Values(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		change, ok := changes[v.Path]
		if !ok {
			t.Errorf("%s is in values.yaml, but nothing here changes it", v.Path)
			continue
		}
		delete(changes, v.Path)
		if manifests(base[v.Path]) == manifests(change) {
			t.Errorf("%s changes nothing", change)
		}
	}
	if len(changes) > 0 {
		t.Errorf("not in values.yaml: %v", slices.Sorted(maps.Keys(changes)))
	}
}

// The schema and values.yaml know the same values.
func TestSchemaMatchesValues(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, chart.Dir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		jsonSchema
		Definitions map[string]jsonSchema
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	values, err := os.ReadFile(filepath.Join(root, chart.Dir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := yaml.Unmarshal(values, &defaults); err != nil {
		t.Fatal(err)
	}
	var compare func(at string, s jsonSchema, v map[string]any)
	compare = func(at string, s jsonSchema, v map[string]any) {
		if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
			s = schema.Definitions[name]
		}
		if s.Properties == nil {
			return // Kubernetes says what may be in it
		}
		if s.AdditionalProperties != false {
			t.Errorf("%s: the schema allows unknown values", at)
		}
		for name, property := range s.Properties {
			value, ok := v[name]
			if !ok && at+name != "/global" && !optional(at) {
				t.Errorf("%s%s is in the schema but not in values.yaml", at, name)
			}
			if m, ok := value.(map[string]any); ok {
				compare(at+name+"/", property, m)
			}
		}
		for name := range v {
			if _, ok := s.Properties[name]; !ok {
				t.Errorf("%s%s is in values.yaml but not in the schema", at, name)
			}
		}
	}
	compare("/", schema.jsonSchema, defaults)
}

// optional reports whether the fields there are those of a Kubernetes type,
// which values.yaml need not have all.
func optional(at string) bool {
	return strings.HasSuffix(at, "/resources/") || strings.HasSuffix(at, "/appArmorProfile/") || strings.HasSuffix(at, "/seLinuxOptions/")
}

type jsonSchema struct {
	Ref                  string `json:"$ref"`
	Properties           map[string]jsonSchema
	AdditionalProperties any
}

func TestNotes(t *testing.T) {
	for _, tt := range []struct {
		name, values string
		want, not    []string
	}{
		{
			name: "no class", values: "driverName: x.example.com",
			want: []string{"provisioner: x.example.com", "kubectl describe pvc", "rollout status deployment/nfs-csi-driver-controller daemonset/nfs-csi-driver-node"},
			not:  []string{"storageClassName"},
		},
		{
			name: "classes", values: matrix(t)["storageclasses"],
			want: []string{"nc -w 5 nfs.example.com 2049 -e true && echo nfs: answers", "nc -w 5 10.0.0.1 2049 -e true && echo nfs-archive: answers", "storageClassName: nfs\n", "kubectl wait pvc/shared"},
			not:  []string{"No StorageClass"},
		},
		{
			name: "class that waits for a pod, server with IPv6", values: "storageClasses: [{name: a, server: '[fd00::1]', share: /b, volumeBindingMode: WaitForFirstConsumer}]",
			want: []string{"nc -w 5 fd00::1 2049"},
			not:  []string{"kubectl wait"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rendered, err := tryRender(t, tt.values)
			if err != nil {
				t.Fatal(err)
			}
			notes := rendered["NOTES.txt"]
			for _, w := range tt.want {
				if !strings.Contains(notes, w) {
					t.Errorf("no %q in\n%s", w, notes)
				}
			}
			for _, n := range tt.not {
				if strings.Contains(notes, n) {
					t.Errorf("%q in\n%s", n, notes)
				}
			}
		})
	}
}

func TestValuesAreDocumented(t *testing.T) {
	values, err := chart.Values(root)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range values {
		got[v.Path] = v.Default
	}
	for path, want := range map[string]string{
		"driverName":                 `"csi.nfs-csi.io"`,
		"controller.replicas":        "2",
		"node.tolerations":           `[{"operator":"Exists"}]`,
		"metrics.podMonitor.enabled": "false",
	} {
		if diff := cmp.Diff(want, got[path]); diff != "" {
			t.Errorf("default of %s (-want +got):\n%s", path, diff)
		}
	}
}
