# The service and its models in one image, run without root:
#   docker build -t intclip .
#   docker run --rm -p 127.0.0.1:8000:8000 -e INTCLIP_API_KEY intclip
FROM python:3.11-slim AS build

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
# A virtual environment is copied whole into the second stage; torch comes from the index without CUDA.
RUN python -m venv /opt/intclip \
    && /opt/intclip/bin/pip install --no-cache-dir --constraint constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple torch \
    && /opt/intclip/bin/pip install --no-cache-dir --constraint constraints.txt '.[app]'

FROM python:3.11-slim

COPY --from=build /opt/intclip /opt/intclip
RUN useradd --create-home --uid 10001 intclip
USER 10001
ENV PATH=/opt/intclip/bin:$PATH \
    PYTHONUNBUFFERED=1
# Convert the model's graph now, so that the service starts from it.
RUN python -c "import intclip; intclip.load('lite')"

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from intclip.serving.client import Client; raise SystemExit(not Client(timeout=4).ready())"]
# SIGTERM lets requests finish; give `docker stop` as long with --time.
STOPSIGNAL SIGTERM
ENTRYPOINT ["intclip", "serve", "--host", "0.0.0.0"]
CMD ["--model", "lite"]
