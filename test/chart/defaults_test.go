package chart_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"

	chart "github.com/nfs-csi/nfs-csi-driver/test/chart"
)

func TestNodePlugin(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			pod := nodePod(t, render(t, values))
			if n := len(pod.Containers) + len(pod.InitContainers); n != 1 {
				t.Errorf("%d containers, not 1", n)
			}
			if !pod.HostNetwork {
				t.Error("not on the host network: connections to NFS servers would end with the pod")
			}
			if pod.HostPID || pod.HostIPC {
				t.Error("has the host's processes or IPC, which it does not need")
			}
			driver := container(t, pod, "driver")
			taint := slices.ContainsFunc(driver.Args, func(a string) bool { return strings.HasPrefix(a, "--startup-taint=") })
			if token := pod.AutomountServiceAccountToken; token == nil || *token != taint {
				t.Errorf("gets a service account token: %v; removes a taint, for which alone it needs one: %v", token != nil && *token, taint)
			}
			if p := driver.SecurityContext.ReadOnlyRootFilesystem; p == nil || !*p {
				t.Error("the root file system is writable")
			}
			checkBidirectional(t, pod, driver)
		})
	}
}

// checkBidirectional checks that volumes have the same path in the container and
// on the node, and that those which mounts are made in, and only those, propagate.
func checkBidirectional(t *testing.T, pod corev1.PodSpec, c corev1.Container) {
	t.Helper()
	hostPath := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			t.Errorf("volume %s is not of the node", v.Name)
			continue
		}
		hostPath[v.Name] = v.HostPath.Path
	}
	var propagated []string
	for _, m := range c.VolumeMounts {
		if hostPath[m.Name] != m.MountPath {
			t.Errorf("volume %s is %s on the node, but %s in the container; the kubelet names paths of the node",
				m.Name, hostPath[m.Name], m.MountPath)
		}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
			propagated = append(propagated, m.Name)
		}
	}
	if diff := cmp.Diff([]string{"staging", "pods"}, propagated); diff != "" {
		t.Errorf("volumes that propagate mounts (-want +got):\n%s", diff)
	}
	if p := c.SecurityContext.Privileged; p == nil || !*p {
		t.Error("not privileged: the API server refuses Bidirectional mount propagation without it")
	}
}

// The sockets are where the kubelet looks, and in volumes that are on the node.
func TestSocketsAreOnTheNode(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			pod := nodePod(t, render(t, values))
			driver := container(t, pod, "driver")
			mounted := func(dir string) bool {
				return slices.ContainsFunc(driver.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == dir })
			}
			socket, ok := strings.CutPrefix(argument(t, driver, "--endpoint"), "unix://")
			if dir := strings.TrimSuffix(socket, "/csi.sock"); !ok || dir == socket || !mounted(dir) {
				t.Errorf("--endpoint %q is in no volume", socket)
			}
			if dir := argument(t, driver, "--kubelet-registration-dir"); !strings.HasSuffix(dir, "/plugins_registry") || !mounted(dir) {
				t.Errorf("--kubelet-registration-dir %q is no volume that the kubelet watches", dir)
			}
			if id := argument(t, driver, "--node-id"); id != "$(NODE_NAME)" || driver.Env[0].Name != "NODE_NAME" ||
				driver.Env[0].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				t.Errorf("--node-id %q is not the node's name: %v", id, driver.Env)
			}
		})
	}
}

func TestControllerSecurity(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			pod := controllerPod(t, render(t, values))
			if pod.HostNetwork || pod.HostPID || pod.HostIPC {
				t.Error("shares something of the node: two replicas could not share one node")
			}
			for _, v := range pod.Volumes {
				if v.EmptyDir == nil {
					t.Errorf("volume %s is no emptyDir", v.Name)
				}
			}
			for _, c := range pod.Containers {
				s := c.SecurityContext
				if s.Privileged == nil || *s.Privileged {
					t.Errorf("%s may be privileged", c.Name)
				}
				if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
					t.Errorf("%s may gain privileges", c.Name)
				}
				if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
					t.Errorf("the root file system of %s is writable", c.Name)
				}
				if diff := cmp.Diff([]corev1.Capability{"ALL"}, s.Capabilities.Drop); diff != "" {
					t.Errorf("capabilities that %s drops (-want +got):\n%s", c.Name, diff)
				}
				for _, p := range c.Ports {
					if p.HostPort != 0 {
						t.Errorf("%s has the host port %d: two replicas could not share one node", c.Name, p.HostPort)
					}
				}
			}
			want := []corev1.Capability{"SYS_ADMIN", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"}
			if diff := cmp.Diff(want, container(t, pod, "driver").SecurityContext.Capabilities.Add); diff != "" {
				t.Errorf("capabilities of the driver (-want +got):\n%s", diff)
			}
			for _, c := range pod.Containers[1:] {
				if added := c.SecurityContext.Capabilities.Add; len(added) > 0 {
					t.Errorf("%s has the capabilities %v, which it does not need", c.Name, added)
				}
			}
			if p := pod.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("seccomp profile %v, not RuntimeDefault", p)
			}
		})
	}
}

func TestDefaultProfilesLetTheControllerMount(t *testing.T) {
	pod := controllerPod(t, render(t, ""))
	if p := container(t, pod, "driver").SecurityContext.AppArmorProfile; p == nil || p.Type != corev1.AppArmorProfileTypeUnconfined {
		t.Errorf("AppArmor profile %v: the runtime's default denies mounts", p)
	}
	for _, c := range pod.Containers[1:] {
		if p := c.SecurityContext.AppArmorProfile; p != nil {
			t.Errorf("%s has the AppArmor profile %v, but mounts nothing", c.Name, p)
		}
	}
	if o := pod.SecurityContext.SELinuxOptions; o == nil || o.Type != "spc_t" {
		t.Errorf("SELinux options %v: container_t may not mount", o)
	}
}

// No rule has a wildcard or concerns Secrets, and what is granted on the whole
// cluster is this and no more.
func TestRBAC(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			list := render(t, values)
			cluster := map[string][]string{
				"persistentvolumes":       {"get", "list", "watch", "create", "patch", "delete"},
				"persistentvolumeclaims":  {"list", "watch", "update"},
				"storageclasses":          {"list", "watch"},
				"volumeattributesclasses": {"get"},
				"events":                  {"create", "patch"},
			}
			if hasResizer(t, list) {
				cluster["persistentvolumeclaims/status"] = []string{"patch"}
				cluster["volumeattributesclasses"] = []string{"get", "list", "watch"}
			}
			if hasContainer(t, list, "csi-snapshotter") {
				cluster["volumesnapshots"] = []string{"get", "list", "watch", "update"}
				cluster["volumesnapshotcontents"] = []string{"get", "list", "watch", "patch"}
				cluster["volumesnapshotcontents/status"] = []string{"update", "patch"}
				cluster["volumesnapshotclasses"] = []string{"list", "watch"}
			}
			granted := map[string][]string{}
			for _, role := range all[*rbacv1.ClusterRole](list) {
				checkRules(t, role.Rules)
				for _, r := range role.Rules {
					for _, resource := range r.Resources {
						granted[resource] = append(granted[resource], r.Verbs...)
					}
				}
			}
			for _, role := range all[*rbacv1.Role](list) {
				checkRules(t, role.Rules)
				for _, r := range role.Rules {
					if diff := cmp.Diff([]string{"leases"}, r.Resources); diff != "" {
						t.Errorf("role %s (-want +got):\n%s", role.Name, diff)
					}
				}
			}
			if len(granted) == 0 && len(all[*rbacv1.ClusterRoleBinding](list)) == 0 && name == "minimal" {
				return // rbac.create is false there
			}
			want := maps.Clone(cluster)
			if name == "everything" {
				want["nodes"] = []string{"get", "patch"} // for node.startupTaint
			}
			if diff := cmp.Diff(want, granted); diff != "" {
				t.Errorf("granted on the whole cluster (-want +got):\n%s", diff)
			}
			controller := controllerPod(t, list).ServiceAccountName
			node := nodePod(t, list).ServiceAccountName
			var subjects []rbacv1.Subject
			for _, b := range all[*rbacv1.ClusterRoleBinding](list) {
				if strings.HasSuffix(b.RoleRef.Name, "-node") {
					want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: node, Namespace: chart.Namespace}}
					if diff := cmp.Diff(want, b.Subjects); diff != "" {
						t.Errorf("who may patch nodes (-want +got):\n%s", diff)
					}
					continue
				}
				subjects = append(subjects, b.Subjects...)
			}
			for _, b := range all[*rbacv1.RoleBinding](list) {
				subjects = append(subjects, b.Subjects...)
			}
			for _, s := range subjects {
				if s.Name != controller || s.Name == node {
					t.Errorf("service account %q has the controller's rights; only %q may", s.Name, controller)
				}
			}
			if len(subjects) == 0 {
				t.Error("no service account has rights")
			}
		})
	}
}

func checkRules(t *testing.T, rules []rbacv1.PolicyRule) {
	t.Helper()
	for _, r := range rules {
		for _, word := range slices.Concat(r.APIGroups, r.Resources, r.Verbs, r.ResourceNames, r.NonResourceURLs) {
			if strings.Contains(word, "*") {
				t.Errorf("wildcard %q in %v", word, r)
			}
			if strings.HasPrefix(word, "secrets") {
				t.Errorf("Secrets in %v", r)
			}
		}
	}
}

func hasResizer(t *testing.T, list objects) bool {
	t.Helper()
	return hasContainer(t, list, "csi-resizer")
}

func hasContainer(t *testing.T, list objects, name string) bool {
	t.Helper()
	return slices.ContainsFunc(controllerPod(t, list).Containers, func(c corev1.Container) bool { return c.Name == name })
}

// The leases that the role allows are those that the sidecars take: every
// character of the driver's name that is no letter, digit or dash is a dash.
func TestLeaseNames(t *testing.T) {
	for values, want := range map[string][]string{
		"driverName: fast.nfs-csi.io":                                            {"fast-nfs-csi-io", "external-resizer-fast-nfs-csi-io"},
		"{driverName: fast.nfs-csi.io, controller: {resizer: {enabled: false}}}": {"fast-nfs-csi-io"},
		"{driverName: fast.nfs-csi.io, controller: {snapshotter: {enabled: true}}}": {
			"fast-nfs-csi-io", "external-resizer-fast-nfs-csi-io", "external-snapshotter-leader-fast-nfs-csi-io",
		},
	} {
		var names []string
		for _, r := range one[*rbacv1.Role](t, render(t, values)).Rules {
			names = append(names, r.ResourceNames...)
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("%s: leases (-want +got):\n%s", values, diff)
		}
	}
}

// Two releases with different driver names share no object, no port of the node
// and no directory that either one's driver writes into; neither one's selectors
// match the other's pods.
func TestTwoReleases(t *testing.T) {
	first := render(t, "")
	second := render(t, "{fullnameOverride: second, nameOverride: second, driverName: second.nfs-csi.io, node: {httpPort: 29811}}")
	names := map[string]bool{}
	for _, o := range first {
		names[key(o)] = true
	}
	for _, o := range second {
		if names[key(o)] {
			t.Errorf("both have %s", key(o))
		}
	}
	one, two := container(t, nodePod(t, first), "driver"), container(t, nodePod(t, second), "driver")
	for _, flag := range []string{"--endpoint", "--http-endpoint", "--driver-name"} {
		if a, b := argument(t, one, flag), argument(t, two, flag); a == b {
			t.Errorf("both have %s=%s", flag, a)
		}
	}
	if one.Ports[0].HostPort == two.Ports[0].HostPort {
		t.Errorf("both have the host port %d", one.Ports[0].HostPort)
	}
	for i, m := range one.VolumeMounts {
		shared := m.Name == "registration" || m.Name == "pods" // the kubelet's
		if same := m.MountPath == two.VolumeMounts[i].MountPath; same != shared {
			t.Errorf("volume %s: %s and %s", m.Name, m.MountPath, two.VolumeMounts[i].MountPath)
		}
	}
}

func TestSelectorsMatchTheirPods(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			list := render(t, values)
			d, s := one[*appsv1.Deployment](t, list), one[*appsv1.DaemonSet](t, list)
			matches := func(selector, labels map[string]string) bool {
				for k, v := range selector {
					if labels[k] != v {
						return false
					}
				}
				return true
			}
			if !matches(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels) || matches(d.Spec.Selector.MatchLabels, s.Spec.Template.Labels) {
				t.Error("the Deployment's selector does not match its pods, or matches the DaemonSet's")
			}
			if !matches(s.Spec.Selector.MatchLabels, s.Spec.Template.Labels) || matches(s.Spec.Selector.MatchLabels, d.Spec.Template.Labels) {
				t.Error("the DaemonSet's selector does not match its pods, or matches the Deployment's")
			}
		})
	}
}

// A PVC's event should hold the driver's words on a failure, not that a sidecar
// did not wait for them.
func TestSidecarsAreMorePatient(t *testing.T) {
	pod := controllerPod(t, render(t, ""))
	for _, sidecar := range pod.Containers[1:] {
		if got := fmt.Sprint(argument(t, container(t, pod, "driver"), "--operation-timeout"), argument(t, sidecar, "--timeout")); got != "30s90s" {
			t.Errorf("operation timeout and that of %s are %s: the second must be more than twice the first", sidecar.Name, got)
		}
	}
}

// external-resizer watches all pods of the cluster unless it is told not to.
func TestResizerWatchesNoPods(t *testing.T) {
	pod := controllerPod(t, render(t, ""))
	if got := argument(t, container(t, pod, "csi-resizer"), "--handle-volume-inuse-error"); got != "false" {
		t.Errorf("--handle-volume-inuse-error=%s", got)
	}
}

func TestProbesAnswerWhereTheDriverListens(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			list := render(t, values)
			for _, pod := range []corev1.PodSpec{controllerPod(t, list), nodePod(t, list)} {
				driver := container(t, pod, "driver")
				endpoint := argument(t, driver, "--http-endpoint")
				for _, probe := range []*corev1.Probe{driver.LivenessProbe, driver.ReadinessProbe} {
					host := probe.HTTPGet.Host
					if local := strings.HasPrefix(endpoint, "127.0.0.1:"); local != (host == "127.0.0.1") {
						t.Errorf("the driver listens on %s, the kubelet asks host %q", endpoint, host)
					}
					if port := probe.HTTPGet.Port.String(); port != driver.Ports[0].Name {
						t.Errorf("the kubelet asks port %s, the container has %v", port, driver.Ports)
					}
				}
				if port := fmt.Sprintf(":%d", driver.Ports[0].ContainerPort); !strings.HasSuffix(endpoint, port) {
					t.Errorf("the driver listens on %s, the port is %s", endpoint, port)
				}
			}
		})
	}
}

func TestCSIDriver(t *testing.T) {
	d := one[*storagev1.CSIDriver](t, render(t, ""))
	no, policy := false, storagev1.FileFSGroupPolicy
	want := storagev1.CSIDriverSpec{
		AttachRequired:       &no,
		PodInfoOnMount:       &no,
		RequiresRepublish:    &no,
		StorageCapacity:      &no,
		FSGroupPolicy:        &policy,
		VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent},
	}
	if diff := cmp.Diff(want, d.Spec); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if all[*storagev1.StorageClass](render(t, "")) != nil {
		t.Error("there is a StorageClass that nobody asked for")
	}
}

// A claim that nobody would expand is refused, instead of waiting for ever.
func TestExpansionTakesTheResizer(t *testing.T) {
	const class = "storageClasses: [{name: nfs, server: a, share: /b}]"
	for values, want := range map[string]bool{class: true, class + "\ncontroller: {resizer: {enabled: false}}": false} {
		list := render(t, values)
		if got := one[*storagev1.StorageClass](t, list).AllowVolumeExpansion; *got != want || hasResizer(t, list) != want {
			t.Errorf("%s: expansion allowed: %v, resizer: %v", values, *got, hasResizer(t, list))
		}
	}
}

func TestStorageClasses(t *testing.T) {
	classes := all[*storagev1.StorageClass](render(t, matrix(t)["storageclasses"]))
	if len(classes) != 2 {
		t.Fatalf("%d classes, not 2", len(classes))
	}
	want := map[string]string{
		"server":           "10.0.0.1,10.0.0.2",
		"share":            "/",
		"subDir":           "${pvc.metadata.namespace}/${pvc.metadata.name}",
		"onDelete":         "archive",
		"mountPermissions": "0770",
		"uid":              "1000000",
		"gid":              "1000",
	}
	if diff := cmp.Diff(want, classes[1].Parameters); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
	if a, b := classes[0].AllowVolumeExpansion, classes[1].AllowVolumeExpansion; !*a || *b {
		t.Errorf("expansion is allowed: %v by default, %v where the values say no", *a, *b)
	}
	const mark = "storageclass.kubernetes.io/is-default-class"
	if classes[0].Annotations[mark] != "true" || classes[1].Annotations[mark] != "" {
		t.Errorf("default class: %v, %v", classes[0].Annotations, classes[1].Annotations)
	}
}
