"""Writes a trained network as ONNX, checked on pictures: python scripts/export.py RUN."""

import argparse
import logging

from seglab.core.console import add_trust, log_to_console
from seglab.core.errors import one_line_errors


@one_line_errors
def main() -> None:
    """Parses and calls `seglab.inference.export.export`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run directory, or checkpoint")
    parser.add_argument("--out", metavar="FILE", help="default: network.onnx in RUN")
    parser.add_argument(
        "--images",
        metavar="IMAGES",
        nargs="+",
        default=[],
        help="pictures to compare on; default: 20 of the run's test cases",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_trust(parser)
    args = parser.parse_args()

    from seglab.inference.export import export

    log = logging.getLogger("seglab")
    with log_to_console(log):
        parity, out = export(args.run, args.out, args.images, args.overwrite, tuple(args.trust))
        log.info(
            "%d pictures: probabilities differ by %.1e at most, %.2g %% of masks' pixels change",
            *(parity.images, parity.difference, 100 * parity.pixels),
        )
        log.info(
            "torch takes %.0f ms a picture, ONNX Runtime %.0f ms",
            *(parity.torch_ms, parity.onnx_ms),
        )
        log.info("written to %s", out)


if __name__ == "__main__":
    main()
