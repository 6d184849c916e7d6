# Learned image codecs in a container. Nothing is written but to mounted folders, so that a
# read-only root, any user and no network do:
#
#     docker build --target runtime -t lic .
#     docker run --rm --read-only --network none -u "$(id -u):$(id -g)" -v "$PWD:/data" \
#         lic compress photo.png
#
#     runtime  ONNX Runtime on CPUs, no torch; linux/amd64 and linux/arm64
#     cuda     PyTorch and ONNX Runtime with CUDA; linux/amd64
#
# Which versions are installed is for pyproject.toml to say.

FROM debian:bookworm-slim AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libstdc++6 python3 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/*


FROM python AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev libpython3-dev python3-venv
# pip lives in an environment of its own: what ships has none.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/lic
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Dependencies come before the sources, so that a change of these does not install all of them.
COPY pyproject.toml ./


FROM build AS build-runtime
RUN python3 -c 'import tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], sep="\n")' >/requirements.txt \
    && /pip/bin/pip --python /opt/lic/bin/python install --no-compile -r /requirements.txt
COPY . .
RUN /pip/bin/pip --python /opt/lic/bin/python install --no-compile --no-deps .
# Without a compiler lic installs all the same, and is slow; here that would be a mistake.
RUN /opt/lic/bin/python -B -c 'from lic.codec.entropy import kernel_name; kernel_name("c")'
# What nothing here can use: dependencies' tests, what compilers and type checkers read, tools that
# need onnx or torch, and the copy of ONNX Runtime for programs in C (Python's module holds its own).
# Licences lie elsewhere, and stay.
RUN cd /opt/lic/lib/python3*/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && find . -type f '(' -name '*.a' -o -name '*.pyi' -o -name '*.pxd' ')' -delete \
    && rm -rf numpy/_core/include numpy/distutils numpy/f2py /opt/lic/include \
        onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
        onnxruntime/capi/libonnxruntime.so.* \
    && find /opt/lic/bin -type f ! -name lic -delete
# The container cannot write byte code. It is never compared with its source, whose time a copy
# may change.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/lic/lib


FROM build AS build-cuda
# Both packages of ONNX Runtime are the same folder, so only one of them may come. Its extras are
# the CUDA libraries that torch does not bring.
RUN python3 -c 'import tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
wanted = project["dependencies"] + project["optional-dependencies"]["torch"]; \
gpu = "onnxruntime-gpu[cuda,cudnn]"; \
print(*(w.replace("onnxruntime", gpu) for w in wanted), sep="\n")' >/requirements.txt \
    && /pip/bin/pip --python /opt/lic/bin/python install --no-compile -r /requirements.txt
COPY . .
RUN /pip/bin/pip --python /opt/lic/bin/python install --no-compile --no-deps .
RUN /opt/lic/bin/python -B -c 'from lic.codec.entropy import kernel_name; kernel_name("c")'
# One of torch's own tests is for newer Pythons only.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -x /torch/testing/_internal/ \
        /opt/lic/lib


# What both targets are, apart from what is installed.
FROM python AS final
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lic" \
      org.opencontainers.image.description="Learned image codecs: compress, decompress, benchmark" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# By number, so that an orchestrator can see that it is not root. Any other user will do, too:
# nothing belongs to this one but the empty folder where results go if none is mounted.
RUN echo 'lic:x:65532:65532::/tmp:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'lic:x:65532:' >>/etc/group \
    && install --directory --owner 65532 --group 65532 /data
# ONNX Runtime 1.29 and later tell Microsoft what they run, and keep an identifier, unless told not to.
ENV PATH=/opt/lic/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
USER 65532:65532
WORKDIR /data
ENTRYPOINT ["lic"]
CMD ["--help"]
HEALTHCHECK --interval=5m --timeout=60s CMD ["lic", "verify", "--self-test", "--quiet"]


FROM final AS runtime
COPY --from=build-runtime /opt/lic /opt/lic


FROM final AS cuda
COPY --from=build-cuda /opt/lic /opt/lic
USER root
# torch finds NVIDIA's libraries among Python's packages, ONNX Runtime only where the linker looks.
RUN find /opt/lic/lib -type d -path '*/nvidia/*/lib' >/etc/ld.so.conf.d/nvidia.conf && /sbin/ldconfig
USER 65532:65532
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
