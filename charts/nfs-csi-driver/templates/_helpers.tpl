{{- define "nfs-csi-driver.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* 50 characters leave room for "-controller" and the suffixes of pods. */}}
{{- define "nfs-csi-driver.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "nfs-csi-driver.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select: they never change in the life of a release. */}}
{{- define "nfs-csi-driver.selectorLabels" -}}
app.kubernetes.io/name: {{ include "nfs-csi-driver.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of pods. They hold no version of the chart, which would restart every pod when it changes. */}}
{{- define "nfs-csi-driver.podLabels" -}}
{{ include "nfs-csi-driver.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "nfs-csi-driver.labels" -}}
{{ include "nfs-csi-driver.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The image of a map with registry, repository, tag, digest; "default" is the tag when it has none. */}}
{{- define "nfs-csi-driver.image" -}}
{{- $name := .image.repository -}}
{{- if .image.registry -}}
{{- $name = printf "%s/%s" .image.registry .image.repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .default .image.tag | required (printf "the image %s needs a tag or a digest" $name)) -}}
{{- end -}}
{{- end -}}

{{- define "nfs-csi-driver.controllerServiceAccount" -}}
{{- with .Values.controller.serviceAccount -}}
{{- if .name -}}
{{- .name -}}
{{- else if .create -}}
{{- printf "%s-controller" (include "nfs-csi-driver.fullname" $) -}}
{{- else -}}
default
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "nfs-csi-driver.nodeServiceAccount" -}}
{{- with .Values.node.serviceAccount -}}
{{- if .name -}}
{{- .name -}}
{{- else if .create -}}
{{- printf "%s-node" (include "nfs-csi-driver.fullname" $) -}}
{{- else -}}
default
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The lease that external-provisioner elects its leader with, and the end of external-resizer's: the driver's name as csi-lib-utils makes it a name. */}}
{{- define "nfs-csi-driver.lease" -}}
{{- regexReplaceAll "[^a-zA-Z0-9-]" .Values.driverName "-" -}}
{{- end -}}

{{/* Refuses values that the schema cannot: those that are wrong only together. */}}
{{- define "nfs-csi-driver.validate" -}}
{{- $socket := printf "%s/plugins_registry/%s-reg.sock" .Values.kubeletDir .Values.driverName -}}
{{- if gt (len $socket) 107 -}}
{{- fail (printf "kubeletDir and driverName are too long together: the path of the socket %s has %d bytes, and Linux allows 107. Shorten driverName by %d." $socket (len $socket) (sub (len $socket) 107)) -}}
{{- end -}}
{{- $ports := dict -}}
{{- range $name := list "controller" "controller.provisioner" "controller.resizer" "controller.snapshotter" -}}
{{- $container := index (dict "controller" $.Values.controller "controller.provisioner" $.Values.controller.provisioner "controller.resizer" $.Values.controller.resizer "controller.snapshotter" $.Values.controller.snapshotter) $name -}}
{{- $port := toString (int $container.httpPort) -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "%s.httpPort and %s.httpPort are both %s, but the containers share the network of one pod: change one of them." (get $ports $port) $name $port) -}}
{{- end -}}
{{- $_ := set $ports $port $name -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.podMonitor.enabled needs metrics.enabled: without it the node plugin serves its metrics on 127.0.0.1, where Prometheus cannot reach them." -}}
{{- end -}}
{{- $names := list -}}
{{- $default := "" -}}
{{- range .Values.storageClasses -}}
{{- if has .name $names -}}
{{- fail (printf "storageClasses holds the name %q twice: give one of them another name." .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if .default -}}
{{- if $default -}}
{{- fail (printf "storageClasses %q and %q both have default: true; a cluster has one default class." $default .name) -}}
{{- end -}}
{{- $default = .name -}}
{{- end -}}
{{- end -}}
{{- end -}}
