# Everything on CPUs; `shatter` is its program:
#
#   docker build --file=docker/cpu.Dockerfile --tag=shatter_tf .
#   docker run --rm --volume="$PWD:/work" shatter_tf prepare --input='text/*.txt' --output_dir=corpus
FROM python:3.12-slim

WORKDIR /package
COPY requirements-slim.txt ./
RUN pip install --no-cache-dir --no-deps --requirement requirements-slim.txt
COPY . ./
RUN pip install --no-cache-dir --no-deps .

RUN useradd --create-home --uid=1000 shatter
USER shatter
WORKDIR /work
ENTRYPOINT ["shatter"]
