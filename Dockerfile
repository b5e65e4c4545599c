# plr on processors: docker build -t plr . && docker run --rm -v "$PWD/data:/data" plr train --data /data/ratings.csv --out /data/run
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY plr plr
COPY plr_kernels plr_kernels
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# TORCH may name a build of PyTorch without CUDA, which is several GB smaller: --build-arg TORCH="torch --index-url …"
ARG TORCH="torch"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir ${TORCH} \
    && pip install --no-cache-dir "$(ls /wheels/*.whl)[serve]" \
    && rm -r /wheels \
    && useradd --create-home plr
USER plr
WORKDIR /home/plr
ENTRYPOINT ["plr"]
CMD ["--help"]
