package chart_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"sigs.k8s.io/yaml"

	chart "github.com/nfs-csi/nfs-csi-driver/test/chart"
)

const root = "../.."

// render renders the chart with values in YAML and returns its objects.
func render(t *testing.T, values string) objects {
	t.Helper()
	rendered, err := tryRender(t, values)
	if err != nil {
		t.Fatalf("render: %v", err)
	}
	return decode(t, chart.Manifests(rendered))
}

func tryRender(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	c, err := chart.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	return chart.Render(c, parseValues(t, values))
}

func parseValues(t *testing.T, values string) map[string]any {
	t.Helper()
	var parsed map[string]any
	if err := yaml.Unmarshal([]byte(values), &parsed); err != nil {
		t.Fatalf("values: %v", err)
	}
	return parsed
}

// matrix returns the values of every snapshot by its name.
func matrix(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, chart.MatrixDir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no values in %s (%v)", chart.MatrixDir, err)
	}
	cases := map[string]string{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		cases[strings.TrimSuffix(filepath.Base(f), ".yaml")] = string(data)
	}
	return cases
}

// object is what every type of the API is.
type object interface {
	runtime.Object
	metav1.Object
}

type objects []object

// decode reads a stream of YAML documents into the API server's types. A field
// that a type does not have, or has twice, fails the test. Types that
// Kubernetes does not have come unstructured.
func decode(t *testing.T, stream string) objects {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var out objects
	for document := range strings.SplitSeq("\n"+stream, "\n---\n") {
		var content map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &content); err != nil {
			t.Fatalf("not YAML: %v\n%s", err, document)
		}
		if len(content) == 0 {
			continue
		}
		decoded, _, err := strict.Decode([]byte(document), nil, nil)
		if runtime.IsNotRegisteredError(err) {
			decoded, err = &unstructured.Unstructured{Object: content}, nil
		}
		if err != nil {
			t.Fatalf("%v: %v\n%s", content["kind"], err, document)
		}
		o, ok := decoded.(object)
		if !ok {
			t.Fatalf("%T is no object", decoded)
		}
		out = append(out, o)
	}
	return out
}

// key names an object as the API server tells objects apart.
func key(o object) string {
	return fmt.Sprintf("%s %s/%s", o.GetObjectKind().GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
}

// all returns the objects of type T.
func all[T object](list objects) []T {
	var found []T
	for _, o := range list {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// one returns the only object of type T.
func one[T object](t *testing.T, list objects) T {
	t.Helper()
	found := all[T](list)
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, not 1", len(found), *new(T))
	}
	return found[0]
}

func container(t *testing.T, pod corev1.PodSpec, name string) corev1.Container {
	t.Helper()
	for _, c := range pod.Containers {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no container %s", name)
	return corev1.Container{}
}

func controllerPod(t *testing.T, list objects) corev1.PodSpec {
	t.Helper()
	return one[*appsv1.Deployment](t, list).Spec.Template.Spec
}

func nodePod(t *testing.T, list objects) corev1.PodSpec {
	t.Helper()
	return one[*appsv1.DaemonSet](t, list).Spec.Template.Spec
}

// argument returns the value of a flag "--name=value".
func argument(t *testing.T, c corev1.Container, name string) string {
	t.Helper()
	for _, a := range c.Args {
		if value, ok := strings.CutPrefix(a, name+"="); ok {
			return value
		}
	}
	t.Fatalf("container %s has no argument %s: %q", c.Name, name, c.Args)
	return ""
}
