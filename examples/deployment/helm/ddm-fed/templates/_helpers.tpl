{{- define "ddm.name" -}}
{{ printf "%s-%s" .Release.Name .Values.role | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "ddm.labels" -}}
app.kubernetes.io/name: ddm-fed
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Of one pod; `part` is coordinator, train, send or serve. */}}
{{- define "ddm.selector" -}}
app.kubernetes.io/name: ddm-fed
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "ddm.claim" -}}
{{ .Values.storage.existingClaim | default (include "ddm.name" .) }}
{{- end }}

{{/* fsGroup is applied once: a later pass would open the key files to the group, and such keys are refused. */}}
{{- define "ddm.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A volume of one node only is also one of the pod that stays: what ends has to run beside it. */}}
{{- define "ddm.beside" -}}
{{- if .Values.site.serveExpert.enabled -}}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "ddm.selector" (dict "root" . "part" "serve") | nindent 12 }}
{{- end }}
{{- end }}

{{- define "ddm.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
env:
  - {name: DDM_FED_PASSPHRASE_FILE, value: /run/secrets/ddm/passphrase}
  - {name: MPLCONFIGDIR, value: /tmp}
{{- end }}

{{- define "ddm.mounts" -}}
- {name: workspace, mountPath: /srv/ddm}
- {name: tmp, mountPath: /tmp}
- {name: passphrase, mountPath: /run/secrets/ddm, readOnly: true}
{{- end }}

{{- define "ddm.volumes" -}}
- name: workspace
  persistentVolumeClaim: {claimName: {{ include "ddm.claim" . }}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 512Mi}
- name: passphrase
  secret:
    secretName: {{ .Values.passphraseSecret }}
    defaultMode: 0440
    items: [{key: passphrase, path: passphrase}]
{{- end }}
