"""GM/T 0018 ("SDF") over the native socket: ``SdfDevice`` with its structures and return codes; docs/sdf.md.

``device`` and ``types`` are the application's side. The other modules work inside the HSM, behind the native operation ``sdf``.
"""

from hsm_sim.sdf.device import SdfDevice
from hsm_sim.sdf.types import DEVICEINFO, ECCCipher, ECCrefPrivateKey, ECCrefPublicKey, ECCSignature, SdfError, Sdr

__all__ = ["DEVICEINFO", "ECCCipher", "ECCSignature", "ECCrefPrivateKey", "ECCrefPublicKey", "SdfDevice", "SdfError", "Sdr"]
