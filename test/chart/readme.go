package chart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The lines of the README between which the table of values is.
const (
	tableBegin = "<!-- values: generated from values.yaml -->\n"
	tableEnd   = "<!-- end of values -->\n"
)

// Value is a value of the chart that a user may set.
type Value struct {
	// Path is its name, such as "controller.replicas".
	Path string
	// Default is its default as JSON.
	Default string
	// Comment is the text after "# --" above it, in one line.
	Comment string
}

// Values returns the values in values.yaml, in its order. A comment that begins
// with "# --" documents the key below it, and all that is beneath that key.
// It fails on keys that no comment documents.
func Values(root string) ([]Value, error) {
	data, err := os.ReadFile(filepath.Join(root, Dir, "values.yaml"))
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	values, err := collect(document.Content[0], "")
	if err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	return values, nil
}

func collect(node *yaml.Node, prefix string) ([]Value, error) {
	var values []Value
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		if comment := documentation(key.HeadComment); comment != "" {
			var v any
			if err := value.Decode(&v); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			text, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			values = append(values, Value{Path: name, Default: string(text), Comment: comment})
			continue
		}
		if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
			return nil, fmt.Errorf("line %d: %s has no comment that begins with \"# --\"", key.Line, name)
		}
		more, err := collect(value, name+".")
		if err != nil {
			return nil, err
		}
		values = append(values, more...)
	}
	return values, nil
}

func documentation(comment string) string {
	_, text, ok := strings.Cut(comment, "# -- ")
	if !ok {
		return ""
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(text, "\n#", "\n")), " ")
}

func generateReadme(root string) ([]byte, error) {
	readme, err := os.ReadFile(filepath.Join(root, readmePath))
	if err != nil {
		return nil, err
	}
	values, err := Values(root)
	if err != nil {
		return nil, err
	}
	before, rest, ok := bytes.Cut(readme, []byte(tableBegin))
	_, after, closed := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !closed {
		return nil, errors.New("the marks around the table of values are gone")
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tableBegin + "| value | default | meaning |\n|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`)
	for _, v := range values {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", v.Path, cell.Replace(v.Default), cell.Replace(v.Comment))
	}
	b.WriteString(tableEnd)
	b.Write(after)
	return b.Bytes(), nil
}
