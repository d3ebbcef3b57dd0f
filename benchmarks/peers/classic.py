"""The classic bridge: one FastAPI file between Twilio Media Streams and a live model.

This is how tutorials and most projects do it: uvicorn on uvloop, a route that answers with TwiML,
a WebSocket route with one coroutine for each direction, ``json``, ``base64``, ``audioop`` and the
``websockets`` client. It is written to be read as theirs are, and does what they do: ``ratecv``
without its state, no signatures, no tickets, no marks. It only speaks today's dialect of the model,
and lets the addresses come from the environment.

``python -m benchmarks.peers.classic``, with ``HOST``, ``PORT``, ``PUBLIC_URL``, ``GEMINI_URL`` and
``GEMINI_API_KEY``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import warnings

import uvicorn
import websockets
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from twilio.twiml.voice_response import Connect, VoiceResponse

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.13 has it from audioop-lts
    import audioop

MODEL = "models/gemini-3.8-live"
SYSTEM_MESSAGE = "You are a helpful assistant who answers the phone. Keep your answers short."

app = FastAPI()


@app.post("/twiml")
async def twiml() -> HTMLResponse:
    response = VoiceResponse()
    connect = Connect()
    connect.stream(url=os.environ["PUBLIC_URL"].replace("http", "ws", 1) + "/stream")
    response.append(connect)
    return HTMLResponse(content=str(response), media_type="application/xml")


@app.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    await websocket.accept()
    url = (
        f"{os.environ['GEMINI_URL']}/ws/google.ai.generativelanguage.v1beta."
        f"GenerativeService.BidiGenerateContent?key={os.environ['GEMINI_API_KEY']}"
    )
    async with websockets.connect(url) as gemini:
        setup = {
            "model": MODEL,
            "generationConfig": {"responseModalities": ["AUDIO"]},
            "systemInstruction": {"parts": [{"text": SYSTEM_MESSAGE}]},
        }
        await gemini.send(json.dumps({"setup": setup}))
        await gemini.recv()
        await gemini.send(json.dumps({"realtimeInput": {"text": "Greet the caller."}}))
        stream_sid = None

        async def receive_from_twilio() -> None:
            nonlocal stream_sid
            try:
                async for message in websocket.iter_text():
                    data = json.loads(message)
                    if data["event"] == "media":
                        mulaw = base64.b64decode(data["media"]["payload"])
                        pcm8 = audioop.ulaw2lin(mulaw, 2)
                        pcm16, _ = audioop.ratecv(pcm8, 2, 1, 8000, 16000, None)
                        audio = {
                            "mimeType": "audio/pcm;rate=16000",
                            "data": base64.b64encode(pcm16).decode("ascii"),
                        }
                        await gemini.send(json.dumps({"realtimeInput": {"audio": audio}}))
                    elif data["event"] == "start":
                        stream_sid = data["start"]["streamSid"]
                    elif data["event"] == "stop":
                        break
            except WebSocketDisconnect:
                pass
            await gemini.close()

        async def send_to_twilio() -> None:
            async for message in gemini:
                content = json.loads(message).get("serverContent", {})
                for part in content.get("modelTurn", {}).get("parts", []):
                    if "inlineData" in part and stream_sid:
                        pcm24 = base64.b64decode(part["inlineData"]["data"])
                        pcm8, _ = audioop.ratecv(pcm24, 2, 1, 24000, 8000, None)
                        payload = base64.b64encode(audioop.lin2ulaw(pcm8, 2)).decode("ascii")
                        await websocket.send_json(
                            {
                                "event": "media",
                                "streamSid": stream_sid,
                                "media": {"payload": payload},
                            }
                        )
                if content.get("interrupted"):
                    await websocket.send_json({"event": "clear", "streamSid": stream_sid})

        await asyncio.gather(receive_from_twilio(), send_to_twilio())


if __name__ == "__main__":
    uvicorn.run(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), log_level="warning")
